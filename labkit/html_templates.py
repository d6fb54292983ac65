"""Templates of pages: what is filled in is escaped, and a name that is not given is an error."""

import jinja2


def templates(package: str = "labkit") -> jinja2.Environment:
    """Return the templates in a package's folder `templates`."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
