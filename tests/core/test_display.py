"""Text and HTML of what objects show of themselves."""

from medvlp_core.display import Displayed, as_html, as_text


class Shown(Displayed):
    def display(self) -> tuple[str, list[tuple[str, str]]]:
        return "Run <one>", [("a", "1 & 2"), ("longer", "<script>")]


def test_rows_stand_in_two_columns() -> None:
    assert repr(Shown()) == "Run <one>\n  a       1 & 2\n  longer  <script>"
    assert as_text("Nothing", []) == "Nothing"


def test_html_escapes_what_stands_in_it() -> None:
    html = Shown()._repr_html_()
    assert html.startswith("<table><caption>Run &lt;one&gt;</caption>")
    assert "<th>a</th><td>1 &amp; 2</td>" in html
    assert "<td>&lt;script&gt;</td>" in html
    assert "<script>" not in html
    assert as_html("x", [("<i>", "y")]) == "<table><caption>x</caption><tr><th>&lt;i&gt;</th><td>y</td></tr></table>"
