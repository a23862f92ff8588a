"""Leave the fields of named tuples out of the API pages: "Alias for field number 0" helps nobody."""


def skip(app, what, name, member, skip, options):
    documented = getattr(member, "__doc__", None) or ""
    return True if documented.startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
