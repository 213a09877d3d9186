"""The pages of `idxflow serve`, for people: made on the server, without a request to anywhere else.

`routes` has all of them; each other module makes one, from a template of the same name in `flows/web/templates`.
"""
