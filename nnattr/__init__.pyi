"""The public names, each imported from where it lives when it is first used.

`nnattr/__init__.py` reads this file, and so do type checkers: it is the one list of public names.
"""

from . import arch as arch
from . import edit as edit
from . import errors as errors
from . import metrics as metrics
from . import plots as plots
from . import results as results
from . import tasks as tasks
from . import weights as weights
from .backend import NDIF as NDIF
from .backend import Local as Local
from .backend import Simulated as Simulated
from .calls.submit import Job as Job
from .calls.submit import submit as submit
from .errors import NnattrError as NnattrError
from .methods.attention.attention_patterns import attention_patterns as attention_patterns
from .methods.attention.copying import copying_score as copying_score
from .methods.attention.copying import name_mover_score as name_mover_score
from .methods.attention.decompose_attention import decompose_attention as decompose_attention
from .methods.attention.detect_heads import detect_heads as detect_heads
from .methods.behaviour.capture import capture as capture
from .methods.behaviour.compare_runs import compare_runs as compare_runs
from .methods.behaviour.generate import generate as generate
from .methods.behaviour.inspect_prompt import inspect_prompt as inspect_prompt
from .methods.behaviour.most_frequent_answers import most_frequent_answers as most_frequent_answers
from .methods.direct.direct_logit_attribution import (
    direct_logit_attribution as direct_logit_attribution,
)
from .methods.direct.logit_lens import logit_lens as logit_lens
from .methods.direct.next_token_attribution import next_token_attribution as next_token_attribution
from .methods.patching.ablation import ablate as ablate
from .methods.patching.ablation import ablate_together as ablate_together
from .methods.patching.activation_patching import activation_patching as activation_patching
from .methods.patching.attribution_patching import attribution_patching as attribution_patching
from .methods.patching.path_patching import path_patching as path_patching
from .metrics import KL as KL
from .metrics import GroupLogProbDiff as GroupLogProbDiff
from .metrics import GroupProbDiff as GroupProbDiff
from .metrics import LogitDiff as LogitDiff
from .metrics import LogProb as LogProb
from .metrics import Loss as Loss
from .metrics import Prob as Prob
from .metrics import SequenceLogProb as SequenceLogProb
from .metrics import SequenceLogProbDiff as SequenceLogProbDiff
from .model.edited import edited as edited
from .model.load import load as load
from .model.model import Model as Model
from .model.verify import verify as verify
from .results import EdgeScores as EdgeScores
from .results import Scores as Scores
from .results import agreement as agreement
from .results import load_result as load_result
from .tasks import Task as Task

__version__: str
