"""Pieces of kernels: a function that kernels call comes in; its optimised IR comes out, to be linked into kernels.

Of every function that a kernel calls Numba also makes machine code, with wrappers for calls from Python and C. Nobody
calls those of a piece, and they take a quarter of the time in which all kernels are compiled.

Source: Numba's documentation, "Customizing the Compiler".
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class _Code(JITCodeLibrary):
    """A piece's IR, linked with that of the pieces that it calls, and optimised."""

    def _finalize_final_module(self) -> None:
        """After that, where Numba makes machine code. (Kernels linked of plain IR are up to a sixth slower.)"""
        self._finalized = True


class _Body(_Code):
    """A kernel's IR, linked with that of the pieces that it calls; what calls it is optimised with it."""

    def _optimize_final_module(self) -> None:
        """Once, in the call (`handover.py`)."""


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Numba's lowering, into a `_Code`."""

    _name = "sparsegen_lower_piece"
    _library: type[_Code] = _Code

    def run_pass(self, state: Any) -> bool:
        state.library = self._library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state.cr
        # what callers find the function by, in place of an entry to its machine code
        key = _dynfunc.make_function(
            lowered.fndesc.lookup_module(), lowered.fndesc.qualname, "", 0, lowered.env, (state.library,)
        )
        state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
        state["cr"] = lowered._replace(cfunc=key)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LoweringOfBody(_Lowering):
    """Numba's lowering, into a `_Body`."""

    _name = "sparsegen_lower_body"
    _library = _Body


class Piece(CompilerBase):
    """The compiler of pieces, for `numba.njit(pipeline_class=Piece)`."""

    lowering: type[NativeLowering] = _Lowering

    def define_pipelines(self) -> list[Any]:
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.passes = [
            (self.lowering if each is NativeLowering else each, purpose) for each, purpose in manager.passes
        ]
        manager.finalize()
        return [manager]


class Body(Piece):
    """The compiler of kernels that one call is made of, and that no other kernel calls."""

    lowering = _LoweringOfBody
