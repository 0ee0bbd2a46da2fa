"""A `llama_cpp.Llama` that generates under mixtures, and knows what its keys and values belong to.

llama_cpp reuses the longest prefix that a new prompt shares with what the context holds. That is
right only under the same adapters with the same weights: keys and values are made by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp

from ..errors import MixtureError
from .interrupts import interrupts_held
from .mixture import Mixer, Mixture, MixtureKey, mixture_key
from .prompt_tokens import PromptTokens


class Stopped(Exception):
    """Carries nothing: the prompt need not be read to its end."""


class MixedLlama(PromptTokens):
    """What is below the routing. `mixer` must be there before anything is generated.

    `should_stop` is asked before every token, and before every batch of a prompt, in the thread
    that generates; once it says True the answer ends as if it had reached its longest. It may be
    set by any thread, and is never asked while the route of a prompt is worked out.
    """

    mixer: Mixer
    should_stop: Callable[[], bool] = staticmethod(lambda: False)
    # What the context's keys and values were made under; None when that is unknown.
    _kv_key: MixtureKey | None = mixture_key(())

    def set_mixture(self, mixture: Mixture, *, keys_are_right: bool = False) -> str:
        """Generate under `mixture` from now on; returns how it is made, as `Mixer.set` does.

        The parent evaluates the next prompt from its start unless the mixture is the same, or
        the caller says that the context's keys and values are what they ought to be. Raises as
        `Mixer.set` does.
        """
        key = mixture_key(mixture)
        if key != self._kv_key and not keys_are_right:
            self.reset()  # the parent then evaluates the whole prompt
        self._kv_key = None  # should the mixer fail half-way
        way = self.mixer.set(mixture)
        self._kv_key = key
        return way

    def read_by_base(self, prompt: list[int], copy: Callable[[Any], bool]) -> None:
        """Fill the context with the base's keys and values of `prompt`.

        `copy(ctx)` puts them there if it has them and returns whether; otherwise they are made.
        The parent then evaluates the last token once more, under whatever is set by then.
        """
        if copy(self.ctx):
            self.input_ids[: len(prompt)] = prompt
            self.n_tokens, self._requires_eval = len(prompt), True
        else:
            self.set_mixture([])
            self.reset()
            self.eval(prompt)
            self._requires_eval = True  # the logits are the base's

    def eval(self, tokens: Sequence[int]) -> None:
        """As in the parent, batch by batch. Raises Stopped between two, if it should stop.

        Ctrl+C is raised when a batch has been evaluated and counted. After an evaluation that
        failed the context is empty, so that the next prompt is evaluated from its start.

        Raises MixtureError where the mixture makes numbers that are not finite. Then all keys and
        values go: where they are hidden from later prompts they still count as 0 times NaN.
        """
        for start in range(0, len(tokens), self.n_batch):
            if self.should_stop():
                raise Stopped
            counted = False
            try:
                with interrupts_held():
                    super().eval(tokens[start : start + self.n_batch])
                    counted = True
            finally:
                if not counted:
                    self._forget_all()
        logits = llama_cpp.llama_get_logits_ith(self.ctx, -1)
        if logits and not math.isfinite(logits[0]):  # one is NaN where all are
            self._forget_all()
            raise MixtureError(
                "the mixture makes numbers that are not finite",
                hint="smaller weights may help; logo-local check looks at the adapters",
            )

    def _forget_all(self) -> None:
        """Drop the keys and values; what they were made from may not be known any more."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)
        self.reset()
        self._kv_key = None

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent, by the base model alone."""
        self.set_mixture([])
        return super().embed(*args, **kwargs)

    def save_state(self) -> Any:
        """As in the parent; the state remembers the mixture that made it."""
        state = super().save_state()
        state.logo_mixture = self._kv_key
        return state

    def load_state(self, state: Any) -> None:
        """As in the parent; under another mixture the state's keys and values are not reused."""
        self._kv_key = None  # should the parent fail half-way
        super().load_state(state)
        self._kv_key = getattr(state, "logo_mixture", None)
