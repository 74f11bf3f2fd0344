"""The command line of Dropforge and its local AWS. Nothing that runs in the cloud imports this."""
