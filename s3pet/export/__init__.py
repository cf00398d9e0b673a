"""Ways out of the library, and in: plain models, PEFT, the authors' files, the hub.

    merging  merge: a tuned model as a plain model of transformers
    peft     to_peft, from_peft: adapter folders of PEFT
    s3delta  from_s3delta: structures and gates of the authors' code
    hub      save_folder, push_to_hub: a tuned model with a card
    registry list_structures, load_structure, save_structure: structures with their scores, in folders and on the hub

Only JSON and safetensors are read, and nothing that is read is executed.
"""

from s3pet.export.hub import push_to_hub, save_folder
from s3pet.export.merging import Merged, merge
from s3pet.export.peft import Adapter, from_peft, to_peft
from s3pet.export.registry import list_structures, load_structure, save_structure
from s3pet.export.s3delta import from_s3delta

__all__ = ["Adapter", "Merged", "from_peft", "from_s3delta", "list_structures", "load_structure", "merge"]
__all__ += ["push_to_hub", "save_folder", "save_structure", "to_peft"]
