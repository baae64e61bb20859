"""`conservative` accounts for the whole logit where no bias takes a share, and only with its rules."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from tests import embedded
from tests.references import guided
from tests.references.relevance import relevance
from tests.zoo import ZOO, randomise, zero_biases

TARGET = torch.tensor([2, 5])


@pytest.mark.parametrize("name", ZOO)
def test_token_relevance_sums_to_the_logit_without_biases(name: str) -> None:
    zoo = ZOO[name]
    explanation = explain(zero_biases(zoo.build()), zoo.images(), TARGET, method="conservative")
    logits = explanation.logits.gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(explanation.token_scores.sum(-1), logits, rtol=0, atol=1e-4)
    assert explanation.completeness_error is not None
    assert explanation.completeness_error.max() < 1e-3  # relative to logits that may be small


@pytest.mark.parametrize("name", [n for n in ZOO if ZOO[n].twin is None])
def test_plain_gradient_times_input_does_not_sum_to_the_logit(name: str) -> None:
    # What makes the test above one that can fail: the sum is the rules' doing.
    zoo = ZOO[name]
    module = zero_biases(zoo.build(torch.float64))
    plain = relevance(zoo, module, zoo.images(dtype=torch.float64), guided.logit(TARGET), "plain")
    assert (plain.tokens.sum(-1) - plain.phi).abs().max() > 0.1


@pytest.mark.parametrize("name", ["vit", "vit_mean", "siglip", "hf_vit"])
@pytest.mark.parametrize("method", ["conservative", "attn_lrp"])
def test_completeness_error_is_the_share_that_biases_take(name: str, method: str) -> None:
    zoo = ZOO[name]
    explanation = explain(zoo.build(), zoo.images(), TARGET, method=method)
    phi = explanation.logits.gather(1, TARGET[:, None])[:, 0]
    missing = (explanation.token_scores.sum(-1) - phi).abs() / phi.abs()
    assert explanation.completeness_error is not None
    torch.testing.assert_close(explanation.completeness_error, missing, rtol=1e-3, atol=1e-5)
    assert missing.min() > 1e-3


@pytest.mark.parametrize("name", ["vit", "deit_distilled", "eva02"])
def test_relevance_of_a_mixture_is_the_mixture_of_relevances(name: str) -> None:
    # Below the logits the modified backward pass is linear in the gradient that it starts from.
    from lightning_attngrad.explain.objectives import Mixture

    zoo = ZOO[name]
    model, images = zoo.build(), zoo.images()
    weights = torch.linspace(-1, 1, 7)
    mixed = explain(model, images, method="conservative", objective=Mixture(weights)).heatmap
    single = explain(model, images, list(range(7)), method="conservative").heatmap  # (B, 7, h, w)
    expected = torch.einsum("c,bchw->bhw", weights, single)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Family:
    """One model of a family.

    Attributes:
        name: timm's.
        options: to build it with.
        size: of its images.
        constants: ends of the names of further parameters that come in behind the embedding, and take what a bias
            takes: tokens and positions that are added late.
        reason: why it cannot conserve; empty where it does.
        precision: of what the model computes, where that is less than float64.
    """

    name: str
    options: dict[str, object] = field(default_factory=dict)
    size: tuple[int, int] = (64, 64)
    constants: tuple[str, ...] = ()
    reason: str = ""
    precision: float = 1e-9


_SQUARE = {"img_size": 64}
FAMILIES = [
    Family("swin_tiny_patch4_window7_224", {"img_size": (64, 96)}, (64, 96)),
    Family("swinv2_tiny_window8_256", {"img_size": 64}),
    Family("swin_s3_tiny_224", size=(224, 224)),
    Family("pvt_v2_b0", size=(64, 96)),
    Family("twins_pcpvt_small"),
    Family("twins_svt_small"),
    Family("hiera_tiny_224", size=(224, 224)),
    Family("mvitv2_tiny"),
    Family("davit_tiny"),
    Family("gcvit_xxtiny", _SQUARE),
    Family("levit_128s", size=(224, 224)),
    Family("mobilevit_xxs"),
    Family("mobilevitv2_050"),
    Family("tiny_vit_5m_224"),
    Family("efficientvit_m0", size=(224, 224)),
    Family("efficientvit_b0", precision=1e-6),  # casts its linear attention to float32
    Family("fastvit_t8"),
    Family("edgenext_xx_small", constants=("pos_embd.token_projection.weight",)),  # of sines alone: a position
    Family("caformer_s18"),
    Family("nest_tiny", _SQUARE, constants=("pos_embed",)),  # each level adds positions of its own
    Family("pit_ti_224", size=(224, 224)),
    Family("xcit_nano_12_p16_224", _SQUARE, constants=("cls_token", "pos_embed.token_projection.weight")),
    Family("coat_lite_tiny", _SQUARE, reason="each stage begins with a class token of its own, without which it is 0"),
    Family("volo_d1_224", _SQUARE, constants=("cls_token", "pos_embed")),
    Family("tnt_s_patch16_224", _SQUARE, constants=("patch_pos", "cls_token")),
    Family("convit_tiny", _SQUARE, constants=("cls_token",)),
    Family("cait_xxs24_224", _SQUARE, constants=("cls_token",)),
    Family("visformer_tiny", size=(224, 224), constants=("pos_embed1", "pos_embed2", "pos_embed3")),
    Family("maxvit_rmlp_pico_rw_256", _SQUARE),
    Family("coatnet_nano_rw_224", _SQUARE),
    Family("botnet26t_256", _SQUARE),
    Family("vit_tiny_r_s16_p8_224", _SQUARE),
    Family("naflexvit_base_patch16_gap"),
    Family("convnext_atto", size=(64, 96)),
    Family("convnextv2_atto"),
    Family("resnet50"),
    Family("resnetv2_50"),
    Family("mobilenetv3_small_100"),
    Family("inception_next_atto"),
    Family("mixer_s16_224", _SQUARE),
    Family("resmlp_12_224", _SQUARE, constants=("beta",)),
    Family("gmlp_s16_224", _SQUARE),
    Family("poolformer_s12"),
    Family("poolformerv2_s12"),
    Family("focalnet_tiny_srf"),
    Family("starnet_s1"),
    Family("sequencer2d_s", size=(224, 224), reason="the gates of nn.LSTM are inside one function of torch"),
]


def _without_biases(family: Family) -> nn.Module:
    model = zero_biases(randomise(timm.create_model(family.name, num_classes=7, **family.options), 0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith((*family.constants, "running_mean", "_b")):
                tensor.zero_()
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval().double()


def _images(size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_relevance_sums_to_the_logit_in_every_family(family: Family) -> None:
    # A single image: where a BatchNorm stands in front of flattened tokens, torch's own gradient would be scrambled.
    model, images = _without_biases(family), _images(family.size)
    _, found, logits = embedded.relevance(model, images)
    missing = (found.sum() - logits.sum()).abs()
    if family.reason:
        assert missing > 1e-3, f"it conserves: {family.reason!r} is not true any more"
        return
    assert logits.abs().min() > 1e-9
    assert missing < family.precision * max(1.0, float(logits.abs().max()))
    torch.testing.assert_close(logits, model(images)[:, 1], rtol=1e-9, atol=1e-12)  # the values are the model's


@pytest.mark.parametrize("name", ["segformer", "cvt"])
def test_relevance_sums_to_the_logit_in_hugging_face_s_hierarchical_models(name: str) -> None:
    import transformers

    if name == "segformer":
        configuration = transformers.SegformerConfig(num_labels=7, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        model: nn.Module = transformers.SegformerForImageClassification(configuration)
    else:
        sizes = {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}
        configuration = transformers.CvtConfig(num_labels=7, **sizes)
        model = transformers.CvtForImageClassification(configuration)
    randomise(model, 0)
    zero_biases(model)
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith(("running_mean", "cls_token")):
                tensor.zero_()
    _, found, logits = embedded.relevance(model.eval().double(), _images((64, 64)))
    assert (found.sum() - logits.sum()).abs() < 1e-9


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "levit_128s", "convnext_atto", "starnet_s1"])
def test_and_not_without_the_rules(name: str) -> None:
    from lightning_attngrad.attention import PLAIN

    family = next(family for family in FAMILIES if family.name == name)
    _, found, logits = embedded.relevance(_without_biases(family), _images(family.size), PLAIN)
    assert (found.sum() - logits.sum()).abs() > 1e-3 * logits.abs().max()


def test_with_biases_the_rest_is_the_completeness_error() -> None:
    family = next(family for family in FAMILIES if family.name == "convnext_atto")
    model = randomise(timm.create_model(family.name, num_classes=7), 0).eval().double()
    explanation = explain(model, _images((64, 96), 2), TARGET, method="conservative")
    assert explanation.completeness_error is not None
    assert explanation.completeness_error.min() > 1e-3
