"""Tables, plots and one page of results, made by `python -m autorep.report`."""

import os

# In a notebook's shell MPLBACKEND names a back end of the notebook, which this Python need not have. Nothing here shows
# a window, so matplotlib is imported without it.
_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib  # noqa: F401
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
