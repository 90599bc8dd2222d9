"""The public names of ``bll``: what `import bll` offers, loaded at the first use of any."""

from bll.blocks import Block
from bll.compiling import compile_blocks
from bll.executor import executor
from bll.feedback import ClassTable, Message
from bll.handle import LocalLearning
from bll.locality import LocalityError
from bll.optim import clip_grad_norm_, param_groups
from bll.output import LocalOutput
from bll.prediction import predict
from bll.rules import Rule, get_rule, rule_names
from bll.shallow import ShallowBlockWarning
from bll.state import load, save
from bll.triples import contrast
from bll.wrap import unwrap, wrap
from bll_kernels._version import __version__

__all__ = [
    "Block",
    "ClassTable",
    "LocalLearning",
    "LocalOutput",
    "LocalityError",
    "Message",
    "Rule",
    "ShallowBlockWarning",
    "__version__",
    "clip_grad_norm_",
    "compile_blocks",
    "contrast",
    "executor",
    "get_rule",
    "load",
    "param_groups",
    "predict",
    "rule_names",
    "save",
    "unwrap",
    "wrap",
]
