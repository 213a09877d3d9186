"""The report of a run: one module per section, assembled by `document.build`."""
