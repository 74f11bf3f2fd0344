for (const part of document.querySelectorAll("[data-search]")) {
  const field = part.querySelector("input");
  const said = part.querySelector("output");
  const rows = [...part.querySelectorAll("tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const search = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      found += row.hidden ? 0 : 1;
    });
    said.textContent = words.length ? `${found} of ${rows.length}` : "";
  };
  field.addEventListener("input", search);
  field.closest("[hidden]").hidden = false;
  search();
}
