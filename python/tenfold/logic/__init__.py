"""Real Logic: formulas over groundings, compiled to fused ops.

    from tenfold.logic import KnowledgeBase, StableProduct

    knowledge = KnowledgeBase("forall x, y: P(x) & Q(y) -> R(x, y)", "forall x: ~(P(x) & Q(x))")
    module = knowledge.compile(StableProduct(p_forall=2))
    module(P=p, Q=q, R=r).loss.backward()   # p, q: (n,), r: (n, n), degrees of truth
    print(module.explain(P=p, Q=q, R=r))

Formulas are written with operators (``syntax``) or as text (``parser``); ``semantics`` says what they mean,
``groundings`` what their symbols are; ``reference`` writes the semantics down, ``plan`` and ``execute``
compile them. Importing this package tells glibc to keep freed memory, as importing tenfold.nn does.
"""

from tenfold.logic.errors import FormulaError
from tenfold.logic.groundings import distance
from tenfold.logic.knowledge import (
    Axiom,
    CompiledKnowledge,
    KnowledgeBase,
    Satisfaction,
    TrivialOptimumWarning,
)
from tenfold.logic.parser import parse
from tenfold.logic.reasoning import Entailment, brave, refute
from tenfold.logic.semantics import (
    Goedel,
    Linear,
    LogMeanExp,
    LogProduct,
    LogSumExp,
    Lukasiewicz,
    Max,
    Mean,
    Min,
    PMean,
    PMeanError,
    Product,
    StableProduct,
    Stepwise,
)
from tenfold.logic.syntax import (
    And,
    Const,
    Domain,
    Exists,
    Forall,
    Func,
    Or,
    Pred,
    Prop,
    Var,
    diagonal,
)
from tenfold.ops.memory import reuse_large_buffers

reuse_large_buffers()

__all__ = [
    "And", "Axiom", "CompiledKnowledge", "Const", "Domain", "Entailment", "Exists", "Forall",
    "FormulaError", "Func", "Goedel", "KnowledgeBase", "Linear", "LogMeanExp", "LogProduct", "LogSumExp",
    "Lukasiewicz", "Max", "Mean", "Min", "Or", "PMean", "PMeanError", "Pred", "Product", "Prop",
    "Satisfaction", "StableProduct", "Stepwise", "TrivialOptimumWarning", "Var", "brave", "diagonal",
    "distance", "parse", "refute",
]  # fmt: skip
