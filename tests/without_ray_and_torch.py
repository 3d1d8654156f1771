"""A plugin of `make test-fast`: whatever imports Ray, torch or DeepSpeed fails."""

import sys
from importlib.abc import MetaPathFinder

REFUSED = {"ray", "torch", "deepspeed"}


class _Refuse(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} is imported in the fast tests")
        return None


assert not REFUSED & sys.modules.keys()
sys.meta_path.insert(0, _Refuse())
