"""The knowledge base in the README runs as it is shown."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_knowledge_base_of_the_readme(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "KnowledgeBase" in block)
    assert len([line for line in code.splitlines() if line]) <= 20
    names: dict = {}
    exec(code, names)
    printed = float(re.search(r"[\d.]+", capsys.readouterr().out)[0])
    assert printed > 0.8  # by an axiom, whoever has cancer smokes
    satisfaction = names["theory"](**names["logits"], **names["known"])
    assert satisfaction.total > 0.8
    assert satisfaction.axioms["forall x, y where friends(x, y): F(x, y)"] > 0.9
