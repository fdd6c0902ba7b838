"""How Sphinx builds the site: `sphinx-build -W -b html docs docs/_build/html`."""

import inspect
import os
import re

# Pages compile much and compute little; the kernels that execute them inherit this.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

import fitopt

project = "fitopt"
author = "the authors of fitopt"
release = version = fitopt.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "jupyter_execute"]

html_theme = "furo"  # light and dark, good on telephones, and all that it loads is its own
html_title = "fitopt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False

# Executed pages are kept in docs/_build, so that a second build executes what has changed alone.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they would come from the network: no bars move
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_inherit_docstrings = False  # a method is shown where it is described
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
default_role = "code"  # docstrings are written as in Markdown, where backquotes mean code


def as_restructured_text(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Docstrings are Markdown: what reStructuredText would read in another way is put as it wants it."""

    def inline(found: re.Match[str]) -> str:
        code, plural = found["code"], "" if found["plural"] is None else "\\ "
        if code is None:
            return r"\|"  # or it would be a substitution
        return (f":py:obj:{code}" if code.startswith("`fitopt.") else code) + plural

    paragraphs = "\n".join(lines).split("\n\n")
    for i, text in enumerate(paragraphs):
        if not text.lstrip().startswith(">>>"):
            text = re.sub(
                r"(?m)^- .*(?:\n {4}\S.*)+", lambda item: item[0].replace("\n    ", "\n  "), text
            )
            paragraphs[i] = re.sub(r"(?P<code>`+[^`]+`+)(?P<plural>(?=\w))?|\|", inline, text)
    lines[:] = "\n\n".join(paragraphs).split("\n")


SHORTER = {  # in signatures
    "jaxlib._jax.": "",
    "~jax.Array | ~numpy.ndarray | ~numpy.bool | ~numpy.number | bool | int | float | complex": (
        "ArrayLike"
    ),
    "~collections.abc.Callable[[~jax.Array], ArrayLike]": "Schedule",
    ", **unknown: ~typing.Any": "",
}


def shorter_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, arguments: str, returns: str
) -> tuple[str, str]:
    """Types under the names that users know; those of Equinox' fields, which converters hide."""
    init = inspect.unwrap(obj.__init__) if inspect.isclass(obj) else None
    is_made = getattr(getattr(init, "__code__", None), "co_filename", "") == "<string>"  # by dataclasses
    for field, annotation in obj.__annotations__.items() if is_made else ():
        kind = stringify_annotation(annotation, "smart")
        arguments = arguments and re.sub(
            rf"\b{field}: ~[\w.]+\.(Any|T)\b", f"{field}: {kind}", arguments
        )
    for long, short in SHORTER.items():
        arguments, returns = (text and text.replace(long, short) for text in (arguments, returns))
    return arguments, returns


def is_bare_field(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Fields of named tuples are in the signature; their docstrings are Python's."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def without_backlinks(
    app: Sphinx, page: str, template: str, context: dict[str, str], doctree: object
) -> None:
    """From source to reference: viewcode takes all of a module to be exported under one name."""
    if page.startswith("_modules/") and "body" in context:
        context["body"] = re.sub(r'<a class="viewcode-back".*?</a>', "", context["body"])


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", as_restructured_text)
    app.connect("autodoc-process-signature", shorter_signature)
    app.connect("autodoc-skip-member", is_bare_field)
    app.connect("html-page-context", without_backlinks, 900)
