import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import UserError
from holdfast.specs import Spec, parse, parse_value


def test_a_bare_name_has_no_fields():
    assert parse("autoattack") == Spec("autoattack")


def test_numbers_fractions_words_lists_and_nested_specs_are_values():
    text = "pgd-at(attack=pgd(eps=8/255, steps=3), norm=linf, weights=[1, .5, -2e-3], on=true, off=none, s='a b')"
    spec = parse(text)
    assert spec.id == "pgd-at"
    assert spec.fields["attack"] == Spec("pgd", {"eps": 8 / 255, "steps": 3})
    assert spec.fields["weights"] == [1, 0.5, -2e-3]
    assert (spec.fields["norm"], spec.fields["on"], spec.fields["off"], spec.fields["s"]) == ("linf", True, None, "a b")
    assert isinstance(spec.fields["attack"].fields["steps"], int)


@pytest.mark.parametrize(
    "text",
    ["", "(", "pgd(", "pgd)", "pgd(eps)", "pgd(eps=)", "pgd(eps=1", "pgd(eps=1,,a=2)", "pgd(eps=1 2)", "8/255",
     "a(b=1/0)", "a(b=1/)", "pgd(eps=1)(x=2)", "pgd(eps=__import__('os'))x", "pgd(eps=1, eps=2)", "pgd(eps=1+1)",
     "a(b=[1)", "a(b=@)"],
)  # fmt: skip
def test_malformed_specs_are_refused_with_one_sentence_and_an_example(text):
    with pytest.raises(UserError, match="pgd\\(eps=8/255, steps=20\\)") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_nothing_is_evaluated_and_depth_is_bounded():
    assert parse_value("__import__") == "__import__"
    with pytest.raises(UserError, match="nesting"):
        parse("a(x=" * 50 + "1" + ")" * 50)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abc '\"\\=,()[]/8", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(
            Spec, st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True), st.dictionaries(st.sampled_from("pqr"), inner)
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["eps", "steps", "loss_2"]), values))
def test_what_is_written_is_read_back_equal(fields):
    # A nested spec without fields is indistinguishable from a word; both name the same method.
    def plain(value):
        match value:
            case Spec(id, {}):
                return id
            case Spec(id, inner):
                return Spec(id, {k: plain(v) for k, v in inner.items()})
            case list():
                return [plain(v) for v in value]
        return value

    spec = Spec("some-method", fields)
    back = parse(str(spec))
    assert back.id == spec.id
    assert {k: plain(v) for k, v in back.fields.items()} == {k: plain(v) for k, v in fields.items()}


def test_pixel_units_are_written_as_fractions_of_255():
    assert str(Spec("pgd", {"eps": 8 / 255, "step": 0.01, "a": 1.0, "b": float("nan"), "c": 0.2})) == (
        "pgd(eps=8/255, step=0.01, a=1.0, b=nan, c=0.2)"
    )


def test_fractions_are_exact():
    assert parse_value("8/255") == 8 / 255
    assert math.isinf(parse_value("inf"))
