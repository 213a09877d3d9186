"""Make a data set of what people have: pictures in folders, tables, arrays, and archives of these."""
