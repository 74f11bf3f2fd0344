"""Where a person can open what lies in a bucket: in the AWS console, which asks who they are."""

from types import MappingProxyType
from typing import Final
from urllib.parse import quote, urlencode

from dropforge_core.layout import split_s3_uri

# Partitions whose console is at another domain (AWS General Reference, "AWS service endpoints").
_DOMAINS: Final = MappingProxyType({"cn": "console.amazonaws.cn", "us-gov": "console.amazonaws-us-gov.com"})


def console_link(uri: str, region: str) -> str:
    """The object's page in the S3 console, from which it opens in the browser.

    A signed address would open for everyone who sees the message; this one opens for who may read the bucket.

    Args:
        uri: `s3://bucket/key`.
        region: the bucket's.

    Returns:
        An https address, or nothing where the URI or the region is none.
    """
    try:
        bucket, key = split_s3_uri(uri)
    except ValueError:
        return ""
    if not bucket or not key or not region:
        return ""
    partition = next((name for name in _DOMAINS if region.startswith(f"{name}-")), "")
    host = (
        _DOMAINS[partition]
        if partition == "us-gov"
        else f"{region}.{_DOMAINS.get(partition, 'console.aws.amazon.com')}"
    )
    query = urlencode({"region": region, "prefix": key}, quote_via=quote, safe="/")
    return f"https://{host}/s3/object/{quote(bucket, safe='')}?{query}"
