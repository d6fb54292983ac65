"""Templates: what is filled into a page is escaped, and a name that is not given is an error."""

import jinja2


def templates(package: str = "labkit", escape: bool = True) -> jinja2.Environment:
    """Return the templates in a package's folder `templates`.

    Args:
        package: Its name.
        escape: False for Markdown made from texts of the project itself.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
