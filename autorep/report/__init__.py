"""Tables, plots and one page of results, made by `python -m autorep.report`."""
