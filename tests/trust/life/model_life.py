"""What may happen to a model between two calls, and whether it then computes what a new one of its state does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from support import originals
from support.compare import relative_error
from torch import Tensor, nn

from septr_fast import SepTr, accelerate, reference

CONFIG: dict[str, Any] = {
    "input_size": (4, 5),
    "num_classes": 3,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 4,
    "dim": 6,
}
SIZES = ((4, 5), (4, 7), (3, 5))
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.2}
"""How far the results may be from the plainly written model's, by dtype."""


class Life:
    """A model that is used and changed; its methods without an underscore are what may happen to it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = SepTr(**CONFIG).double().eval()
        self.twin = SepTr(**CONFIG).double()
        self.earlier = self._state()
        self.seed = 0

    def fault(self) -> str | None:
        """How the model's answer differs from that of a new one of the same state, or None."""
        x = torch.randn(2, 1, *self.model.blocks[0].input_size, generator=torch.Generator().manual_seed(7)).to(
            self.dtype
        )
        training = [(module, module.training) for module in self.model.modules()]
        with torch.no_grad():
            found = self.model.eval()(x)
            fresh = self._like(SepTr)
            expected, plain = fresh(x), self._like(reference.SepTr)(x)
        with torch.enable_grad():
            in_graph = self.model(x).detach()
        for module, mode in training:
            module.training = mode
        if not torch.equal(found, expected):
            return f"other bits than a new model's: off by {relative_error(found, expected):.2g}"
        for name, logits in (("kept weights", found), ("weights folded in the graph", in_graph)):
            error = relative_error(logits, plain)
            if not error < LIMITS[self.dtype]:
                return f"with {name} off by {error:.2g} from the plain model"
        return None

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.model.cls_token.dtype

    def call(self) -> None:
        """Classify, keeping the folded weights."""
        with torch.no_grad():
            self.model(self._x())

    def call_in_inference_mode(self) -> None:
        """Classify under inference mode, whose tensors cannot be saved for a backward pass."""
        with torch.inference_mode():
            self.model(self._x())

    def call_under_autocast(self) -> None:
        """Classify in bfloat16, whose folded weights are others."""
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            self.model(self._x())

    def step_by_adam(self) -> None:
        """One step of an optimizer."""
        self._step(torch.optim.AdamW)

    def step_by_fused_sgd(self) -> None:
        """One step of an optimizer that writes in a kernel of its own."""
        self._step(torch.optim.SGD, fused=True)

    def load(self) -> None:
        """Load another state dict."""
        self.model.load_state_dict(self._other())

    def load_in_part(self) -> None:
        """Load a single key."""
        state = self._other()
        self.model.load_state_dict({"fc.weight": state["fc.weight"], "cls_token": state["cls_token"]}, strict=False)

    def load_by_assignment(self) -> None:
        """Put other tensors in the place of the parameters."""
        self.model.load_state_dict(self._other(), assign=True)

    def go_back(self) -> None:
        """Load what was remembered, after taking its size."""
        lengths = (self.earlier[f"transformer.0.pos_embedding_{side}"].shape[2] - 1 for side in "hw")
        self.model.resize_positions(tuple(lengths))
        self.model.load_state_dict(self.earlier)

    def remember(self) -> None:
        """Keep the state for `go_back`."""
        self.earlier = self._state()

    def deepcopy(self) -> None:
        """Go on with a copy, after the first one was changed."""
        first, self.model = self.model, copy.deepcopy(self.model)
        with torch.no_grad():
            first.fc.weight.mul_(2)

    def pickle(self) -> None:
        """Go on with what comes out of a pickle."""
        self.model = pickle.loads(pickle.dumps(self.model))

    def save_and_load(self) -> None:
        """Go on with a new model from the saved state dict."""
        stored = io.BytesIO()
        torch.save(self.model.state_dict(), stored)
        stored.seek(0)
        state = torch.load(stored, weights_only=True)
        modes = [module.training for module in self.model.modules()]
        self.model = self._like(SepTr)
        self.model.load_state_dict(state)
        for module, mode in zip(self.model.modules(), modes, strict=True):
            module.training = mode

    def cast(self) -> None:
        """Go on in the other dtype."""
        self.model.to(torch.float32 if self.dtype == torch.float64 else torch.float64)

    def cast_and_back(self) -> None:
        """Lose digits."""
        dtype = self.dtype
        self.model.bfloat16()
        self.model.to(dtype)

    def change_in_place(self, which: int) -> None:
        """One parameter, under `no_grad`."""
        with torch.no_grad():
            self._parameter(which).mul_(1.25)

    def change_by_data(self, which: int) -> None:
        """As averages of weights do: no version counter sees it."""
        self._parameter(which).data.mul_(0.75).add_(0.01)

    def change_one_value(self, which: int) -> None:
        """A single number, through `data`."""
        self._parameter(which).data.view(-1)[-1] += 0.5

    def change_through_numpy(self, which: int) -> None:
        """A single number, in memory that PyTorch does not watch."""
        self._parameter(which).detach().numpy().reshape(-1)[0] += 0.5

    def copy_into(self, which: int) -> None:
        """Other values, under `no_grad`."""
        parameter = self._parameter(which)
        with torch.no_grad():
            parameter.copy_(self._random(parameter))

    def set_data(self, which: int) -> None:
        """Other memory for the same parameter."""
        parameter = self._parameter(which)
        parameter.data = self._random(parameter)

    def replace(self, which: int) -> None:
        """Another parameter under the same name."""
        name, parameter = list(self.model.named_parameters())[which % len(list(self.model.parameters()))]
        owner, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(owner), own, nn.Parameter(self._random(parameter)))

    def swap_with_average(self) -> None:
        """Exchange the parameters' memory with that of another model, as evaluation of an average does."""
        for own, other in self._pairs():
            own.data, other.data = other.data, own.data

    def average(self) -> None:
        """Move the other model towards this one."""
        for own, other in self._pairs():
            other.data.lerp_(own.data, 0.1)

    def train(self) -> None:
        """Into training mode; the dropout's probability is 0."""
        self.model.train()

    def evaluate(self) -> None:
        """Into evaluation mode."""
        self.model.eval()

    def freeze(self, which: int) -> None:
        """No gradients for every third parameter, so that some blocks keep their weights in training."""
        for index, parameter in enumerate(self.model.parameters()):
            parameter.requires_grad_((index + which) % 3 > 0)

    def freeze_all(self) -> None:
        """No gradients at all: weights are kept while gradients of the input are asked for."""
        self.model.requires_grad_(False)

    def thaw(self) -> None:
        """Gradients for all."""
        self.model.requires_grad_(True)

    def change_eps(self, which: int) -> None:
        """Another constant in one normalization."""
        norms = [module for module in self.model.modules() if isinstance(module, nn.LayerNorm)]
        norm = norms[which % len(norms)]
        norm.eps = 1e-5 if norm.eps != 1e-5 else 1e-2

    def resize(self, which: int) -> None:
        """Take spectrograms of another size."""
        self.model.resize_positions(SIZES[which % len(SIZES)])

    def functional_call(self) -> None:
        """Classify with other parameters for one call."""
        with torch.no_grad():
            torch.func.functional_call(self.model, self._other(), (self._x(),))

    def accelerate(self) -> None:
        """Go on with what `accelerate` puts in the place of an original of the same state."""
        original = originals.SeparableTr(**{**CONFIG, "input_size": self.model.blocks[0].input_size}).to(self.dtype)
        original.load_state_dict(self._state())
        self._copy_eps(original)
        found = accelerate(original.train(self.model.training))
        assert isinstance(found, SepTr)
        self.model = found

    def fail(self, which: int) -> None:
        """Raise in the middle of a call, while weights are folded."""
        from trust.life.interruptions import interrupted

        with torch.no_grad(), interrupted(which % 60, MemoryError):
            self.model(self._x())

    def _step(self, kind: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.thaw()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = kind(trained, lr=0.02, **options)
        self.model(self._x()).sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def _x(self) -> Tensor:
        self.seed += 1
        shape = (2, 1, *self.model.blocks[0].input_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed)).to(self.dtype)

    def _parameter(self, which: int) -> nn.Parameter:
        parameters = list(self.model.parameters())
        return parameters[which % len(parameters)]

    def _random(self, like: Tensor) -> Tensor:
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        return 0.5 * torch.randn(like.shape, generator=generator).to(like.dtype)

    def _state(self) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in self.model.state_dict().items()}

    def _other(self) -> dict[str, Tensor]:
        return {name: self._random(x) for name, x in self.model.state_dict().items()}

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Each parameter beside that of the other model, which takes size and dtype of this one."""
        self.twin.resize_positions(self.model.blocks[0].input_size)
        self.twin.to(self.dtype)
        return ((own, self.twin.get_parameter(name)) for name, own in self.model.named_parameters())

    def _like(self, kind: Callable[..., Any]) -> Any:
        """A new model of the class `kind` in evaluation mode, with the state of this one."""
        model = kind(**{**CONFIG, "input_size": self.model.blocks[0].input_size}).to(self.dtype)
        model.load_state_dict(self._state())
        self._copy_eps(model)
        return model.eval()

    def _copy_eps(self, model: nn.Module) -> None:
        for name, own in self.model.named_modules():
            if isinstance(own, nn.LayerNorm):
                norm = model.get_submodule(name)
                assert isinstance(norm, nn.LayerNorm)
                norm.eps = own.eps
