"""Which check catches which broken component. A check without a row here fails test_testing_declaration.py."""

from __future__ import annotations

import attrs
import broken_heavy_specs
import broken_specs

from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.roles import Role
from medvlp_core.testing.check_modules import CHECKS
from medvlp_core.testing.checks import Check
from medvlp_core.testing.runner import run_check
from medvlp_core.testing.subject import Subject

#: The modules of checks whose components are in ``broken_specs``.
CHECK_MODULES = ("declaration", "contract", "encoder", "behaviour", "learning", "masking", "alignment")
#: Tracing a call takes seconds, and training most of the rest: done only where it is the point.
SLOW = ("compiles", "learns")


@attrs.frozen
class Row:
    """``component`` is caught by ``check``, which says ``text``; ``also`` are checks that cannot but fail with it."""

    component: str
    check: str
    text: str
    also: frozenset[str] = attrs.field(default=frozenset(), converter=frozenset)


ROWS = (
    # ----------------------------------------------------------------------------------------------------------- declaration
    Row("one_example", "has_two_examples", "gives 1, expected at least two"),
    Row("equal_examples", "has_two_examples", "all examples are equal"),
    Row(
        "refused_examples",
        "has_sound_parameters",
        "problems() says heads: heads=2 is not enough",
        also={"survives_a_recipe"},  # a recipe with these parameters is refused for the same reason
    ),
    Row("other_examples", "declares_the_same_each_time", "examples() gave {'heads': 3}, and {'heads': 1} before"),
    Row("gives_in_a_view", "has_sound_calls", "it gives fused_text_tokens in the masked view, and a port is given in the view"),
    Row(
        "marks_by_nothing",
        "has_sound_calls",
        "fused_text_tokens holds when='image_is_masked', expected the name of a need: text_tokens, text_is_valid, image_tokens",
        also={"gives_the_declared_ports"},  # it holds in no view, and is given in each
    ),
    Row("gives_another_port", "gives_what_its_role_gives", "gives none of fused_image_tokens"),
    Row("declares_a_loss", "gives_what_its_role_gives", "declares balance, and no fusion has losses"),
    Row("list_for_tuple", "survives_a_recipe", "is ListForTupleSpec(heads=2, layers=(1, 2))"),
    Row("overrides_forward", "implements_its_role", "overrides forward, which is final in TextEncoder"),
    Row("asks_torch", "declares_without_torch", "contract() of AsksTorchSpec imports torch"),
    Row("imports_torch", "declares_without_torch", "importing broken_heavy_specs imports torch"),
    # -------------------------------------------------------------------------------------------------------------- contract
    Row("gives_too_much", "gives_the_declared_ports", "forward gave fused_image_tokens; declare it"),
    Row("gives_too_little", "gives_the_declared_ports", "gives fused_text_tokens, and forward did not (masked view)"),
    Row("is_too_wide", "gives_the_declared_shapes", "(3, 9, 13) (clean view), and the contract says (B=3, L=9, Dt=12)"),
    Row(
        "gives_doubles",
        "gives_the_declared_dtypes",
        "is torch.float64 although all weights and inputs are float32",
        also={"keeps_its_dtypes_under_autocast"},  # float64 is as wrong there
    ),
    Row(
        "gives_small_ints",
        "gives_the_declared_dtypes",
        "token_ids is torch.int32, and the contract says int",
        also={"keeps_its_dtypes_under_autocast"},  # as wrong there
    ),
    Row("has_a_secret_loss", "gives_the_declared_losses", "['global', 'local'], and the contract declares ['global']"),
    Row("reports_other_sizes", "reports_the_declared_sizes", "dims() reports Dt=7 (planned 12)"),
    Row("shadows_dims", "reports_the_declared_sizes", "its attribute `dims` shadows the method"),
    Row("wants_the_optional", "works_without_optional_inputs", "give it the default None"),
    Row("sums_attention_to_two", "gives_true_attention_maps", "sum to 2 to 2"),
    Row("turns_the_raster", "keeps_raster_order", "in the clean view 0 of 16 patches"),
    Row("shuffles_visible_tokens", "keeps_raster_order", "in the masked view 0 of 6 patches"),
    # ------------------------------------------------------------------------------------------------------------- behaviour
    Row("sets_the_seed", "starts_from_the_seed", "building it calls torch.manual_seed"),
    Row(
        "draws_weights_elsewhere",
        "starts_from_the_seed",
        "built twice after torch.manual_seed(5), gate differs",
        also={"repeats_with_the_seed"},  # which compares two instances
    ),
    Row("draws_noise_elsewhere", "repeats_with_the_seed", "called twice after torch.manual_seed(7)"),
    Row("sets_the_seed_when_called", "repeats_with_the_seed", "calling it calls torch.manual_seed"),
    Row(
        "drops_out_always",
        "is_deterministic_in_eval",
        "draw only if self.training",
        also={"is_the_same_alone_and_in_a_batch"},  # other shapes draw other numbers
    ),
    Row("stays_on_the_cpu", "stays_on_its_device", "mul gets a tensor on the CPU while weights and inputs are on another device"),
    Row("clips_the_image", "does_not_change_its_inputs", "a call changed image in place"),
    Row(
        "writes_into_features",
        "does_not_change_its_inputs",
        "a call changed text_tokens in place",
        also={"passes_gradients_on"},  # torch refuses it there
    ),
    Row(
        "averages_padding",
        "ignores_padding",
        "other content at the padding of text_tokens changes fused_text_tokens",
        also={"is_the_same_alone_and_in_a_batch"},  # alone it has no padding
    ),
    Row("averages_padding_in_its_loss", "ignores_padding", "other content at the padding of text_tokens changes loss.global"),
    Row(
        "averages_the_batch",
        "is_the_same_alone_and_in_a_batch",
        "pair 1 of 3 has another fused_text_tokens alone",
        also={"mixes_rows_as_declared"},  # with others beside it as well
    ),
    Row("forgets_that_it_mixes", "mixes_rows_as_declared", "what the loss global asks of image_tokens of pair 1 of 3 depends on"),
    Row("root_of_the_mean", "mixes_rows_as_declared", "the loss reconstruction asks of image_tokens of pair 1 of 3 depends on"),
    Row(
        "leaks_the_next_word",
        "sees_only_the_past",
        "next_word_logits is declared with sees='past', and up to position 0 it is another with other tokens after it",
        also={"does_not_see_the_answer"},  # the next word is what it has to find
    ),
    Row("tells_the_length", "sees_only_the_past", "up to position 0 it is another with the text ending there"),
    Row(
        "keeps_a_plain_tensor",
        "survives_a_state_dict",
        "a parameter or a persistent buffer",
        also={"stays_on_its_device"},  # module.to(device) does not move it either
    ),
    Row("keeps_a_fleeting_buffer", "survives_a_state_dict", "a parameter or a persistent buffer"),
    Row("keeps_a_view", "survives_a_state_dict", "cannot be saved and loaded again"),
    Row("computes_ids_as_floats", "keeps_its_dtypes_under_autocast", "token_ids is torch.bfloat16, expected int"),
    Row("loses_precision", "keeps_its_dtypes_under_autocast", "loss.global is torch.bfloat16, expected torch.float32"),
    Row("branches_on_data", "compiles", "Data-dependent branching"),
    Row("rests_every_other_step", "works_under_ddp", "use them in every step"),
    Row("peeks_at_pixels", "does_not_see_the_answer", "patch_prediction depends on image"),
    Row("writes_from_the_answer", "does_not_see_the_answer", "word_logits depends on token_ids"),
    Row("ignores_the_image", "does_not_see_the_answer", "another image changes none of its losses"),
    # -------------------------------------------------------------------------------------------------------------- learning
    Row(
        "detaches_a_layer",
        "teaches_every_parameter",
        "no gradient reaches layer.weight, layer.bias",
        also={"works_under_ddp"},  # which waits for these gradients
    ),
    Row("multiplies_by_zero", "teaches_every_parameter", "the gradient of layer.weight, layer.bias is zero everywhere"),
    Row("detaches_the_image", "passes_gradients_on", "no gradient reaches image_tokens; is there a detach()"),
    Row("reverses_gradients", "learns", "expected it to fall by 2% at least"),
    # --------------------------------------------------------------------------------------------------------------- masking
    Row("mixes_before_it_drops", "does_not_see_masked_patches", "pixels of masked patches change image_tokens"),
    Row("masks_cls", "masks_no_special_tokens", "at (0, 0), (1, 0), (2, 0)"),
    Row("changes_other_ids", "replaces_masked_tokens_only", "token ids changed where text_is_masked is False"),
    Row("keeps_masked_ids", "replaces_masked_tokens_only", "every masked token keeps its id"),
    Row("masks_any_number", "masks_as_many_patches_in_every_image", "masked patches, expected one number"),
    Row("masks_the_same_each_time", "masks_something_else_each_time", "is the same after each of 8 seeds"),
    Row("masks_the_same_in_a_batch", "masks_something_else_each_time", "every image of a batch loses the same patches"),
    Row(
        "masks_nothing",
        "masks_something_else_each_time",
        "it masks nothing",
        also={"masks_the_declared_share"},  # it declares more than none
    ),
    Row("takes_the_ratio_for_visible", "masks_the_declared_share", "image_ratio is 0.75, and 0.25 was masked on average"),
    Row("reads_padding", "depends_on_no_padding", "other ids at padding positions change what is masked"),
    # ------------------------------------------------------------------------------------------------------------- alignment
    Row("forgets_to_normalise", "gives_vectors_of_length_one", "text_embedding has vectors of length 3 to 3, expected 1"),
    Row(
        "embeds_into_two_spaces",
        "gives_vectors_of_length_one",
        "vectors of images and texts are 4 and 8 wide, expected one shared space",
        also={"tells_pairs_from_others"},  # they have no cosine
    ),
    Row("weighs_the_first_pair", "does_not_depend_on_the_order_of_pairs", "with the pairs in another order"),
    Row("pushes_pairs_apart", "tells_pairs_from_others", "is a sign wrong?"),
    Row("does_not_look_at_pairs", "tells_pairs_from_others", "with texts exchanged; expected a clearly higher one"),
)

#: Nothing works with these: the check comes first, and many fail after it.
UNUSABLE = (
    Row("sizes_as_text", "has_sound_calls", "sizes='Dt' is str, expected a tuple of symbols"),
    Row(
        "takes_other_names",
        "implements_its_role",
        "forward does not take text_tokens, text_is_valid, image_tokens, which the contract needs",
    ),
    Row("takes_one_argument", "implements_its_role", "__init__ takes (spec), expected (spec, dims)"),
    Row("lacks_a_method", "implements_its_role", "broken_heads:LacksAMethod has no method embed_text, which calls() declares"),
    Row(
        "takes_undeclared_sizes",
        "is_built_from_its_sizes",
        "asks for dimension S, which its contract does not list: sizes=('Dt', 'Di'); add 'S' to the sizes",
    ),
)

HOST = PluginHost()
for spec in (*broken_specs.SPECS, broken_heavy_specs.ImportsTorchSpec):
    HOST.components.add(spec)


def checks_of(role: Role, *modules: str) -> list[Check]:
    """The checks of these modules that a role gets, in their order."""
    found = [
        one
        for one in CHECKS.values()
        if one.function.__module__.rpartition(".")[2].removesuffix("_checks") in (modules or CHECK_MODULES)
    ]
    return [one for one in found if role in one.roles]


def failures(component: str, *slow: str) -> dict[str, str]:
    """The checks that a component fails, with what they say; of the slow checks those that are named."""
    subject = Subject(HOST, f"broken.{component}")
    results = [run_check(subject, one) for one in checks_of(subject.role) if one.name not in SLOW or one.name in slow]
    return {result.check: result.text for result in results if result.outcome == "failed"}


def expect_caught(row: Row) -> None:
    """The check catches the component with its words, and no other check does that need not."""
    slow = SLOW[1:] if CHECKS[row.check].group == "learning" else ()
    found = failures(row.component, row.check, *slow)
    assert found.keys() == {row.check, *row.also}, found
    assert row.text in found[row.check]


def rows_of(*modules: str) -> list[Row]:
    """The rows whose check stands in one of these modules."""
    return [row for row in ROWS if CHECKS[row.check].function.__module__.rpartition(".")[2].removesuffix("_checks") in modules]
