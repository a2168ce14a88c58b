"""What a person looks at: progress, plots, pages, pictures."""

from importlib.util import find_spec

from posefix_jax.types import PosefixError


def check_report_packages(command: str) -> None:
    """Called before the work whose result is plotted begins.

    Raises:
      PosefixError: a package that draws plots or pages is not installed; the message names the extra that brings it.
    """
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise PosefixError(
            f"{command} draws its plots with {' and '.join(missing)}, not installed here: pip install 'posefix-jax[report]'"
        )
