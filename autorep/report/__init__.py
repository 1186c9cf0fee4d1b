"""Tables, plots and one page of results: what `python -m autorep.report` makes."""
