"""The report of a run: one module per section, put together by `document.build`."""
