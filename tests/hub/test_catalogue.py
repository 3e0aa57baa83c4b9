"""The catalogue says what the issue asks for, and no name, digest or path that leaves the store gets past it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from phial import hub
from phial.errors import PhialError
from phial.hub import catalogue

UNSAFE = [
    "../x.gguf",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "C:x.gguf",
    "a\0b",
    "a\nb",
    "NUL",
    "nul.gguf",
    "x.gguf.",
    "a" * 300,
]


def test_catalogue_lists_the_models_of_the_project() -> None:
    expected = [
        "smollm2-135m",
        "phi-3-mini-4k",
        "phi-3-mini-4k:fp16",
        "phi-3-mini-128k",
        "phi-3.5-mini",
        "phi-3-medium-4k",
        "phi-4-mini",
    ]
    assert hub.names() == expected
    assert hub.DEFAULT_MODEL == "smollm2-135m"


def test_default_model_comes_from_the_wheel_first_and_the_hub_second() -> None:
    model = hub.find("smollm2-135m")
    assert [source.kind for source in model.sources] == ["pypi", "hf"]
    assert (model.size, model.licence, model.file) == (98362432, "Apache-2.0", "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_default_models_digest_is_that_of_the_real_file(smollm2: Path) -> None:
    model = hub.find("smollm2-135m")
    with open(smollm2, "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    assert (smollm2.stat().st_size, digest.hexdigest()) == (model.size, model.sha256)


def test_a_variant_is_another_file_of_the_same_folder() -> None:
    q4, fp16 = hub.find("phi-3-mini-4k"), hub.find("phi-3-mini-4k:fp16")
    assert (q4.folder, fp16.folder) == ("phi-3-mini-4k", "phi-3-mini-4k")
    assert (q4.file, fp16.file) == ("Phi-3-mini-4k-instruct-q4.gguf", "Phi-3-mini-4k-instruct-fp16.gguf")
    assert fp16.sha256 == "5d99003e395775659b0dde3f941d88ff378b2837a8dc3a2ea94222ab1420fad3"


def test_every_model_has_a_hub_source_a_licence_and_both_numbers_or_neither() -> None:
    for name in hub.names():
        model = hub.find(name)
        assert any(source.kind == "hf" for source in model.sources), name
        assert model.licence in {"MIT", "Apache-2.0"}, name
        assert (model.size is None) == (model.sha256 is None), name


@pytest.mark.parametrize(
    ("typo", "meant"), [("smolm2-135m", "smollm2-135m"), ("phi3-mini-4k", "phi-3-mini-4k"), ("PHI-4-mni", "phi-4-mini")]
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(typo: str, meant: str) -> None:
    with pytest.raises(PhialError) as error:
        hub.find(typo)
    assert repr(typo) in error.value.message
    assert f"`{meant}`" in error.value.hint


def test_a_name_like_nothing_known_is_answered_with_all_names() -> None:
    with pytest.raises(PhialError) as error:
        hub.find("zzz")
    assert all(name in error.value.hint for name in hub.names())


def test_a_hub_specification_names_repository_file_and_revision() -> None:
    plain, pinned = hub.find("hf:acme/Tiny/sub/t.gguf"), hub.find("hf:acme/Tiny/t.gguf@refs/pr/1")
    assert plain.sources == (catalogue.HubFile("acme/Tiny", "sub/t.gguf", "main"),)
    assert (plain.folder, plain.file) == ("hf/acme/Tiny/sub", "t.gguf")
    assert pinned.sources == (catalogue.HubFile("acme/Tiny", "t.gguf", "refs/pr/1"),)
    assert pinned.folder == "hf/acme/Tiny@refs%2Fpr%2F1"


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "hf:",
            "hf:acme",
            "hf:acme/Tiny",
            "hf:acme/Tiny/",
            "hf:acme/Tiny/t.bin",
            "hf:acme/Tiny/t.gguf@",
            "hf:/Tiny/t.gguf",
        ),
        *(
            "hf:../../etc/t.gguf",
            "hf:acme/../t.gguf",
            "hf:acme/Tiny/../../t.gguf",
            "hf:acme/Tiny//t.gguf",
            "hf:acme/Tiny/C:t.gguf",
        ),
        *(
            "hf:acme/Tiny/t.gguf@../..",
            "hf:acme/Tiny/t.gguf@/",
            "hf:acme/Tiny/a\\..\\t.gguf",
            "hf:acme/Tiny/a\0.gguf",
            "hf:a?b/T/t.gguf",
        ),
    ],
)
def test_a_malformed_or_escaping_specification_is_refused(spec: str) -> None:
    with pytest.raises(PhialError) as error:
        hub.find(spec)
    assert error.value.hint


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_file_name_is_refused(name: str) -> None:
    with pytest.raises(PhialError, match="unsafe"):
        catalogue.check_file_name(name, what="file name")


@pytest.mark.parametrize("name", ["model.gguf", "Phi-3 mini (v2).gguf", "größe.gguf", "console.gguf"])
def test_an_ordinary_file_name_passes(name: str) -> None:
    assert catalogue.check_file_name(name, what="file name") == name


@pytest.mark.parametrize("digest", ["", "../" * 20 + "abcd", "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "٣" * 64])
def test_what_is_no_sha256_is_refused(digest: str) -> None:
    with pytest.raises(PhialError, match="no sha256"):
        catalogue.check_sha256(digest, what="test")


def test_a_sha256_in_capitals_is_taken_in_lower_case() -> None:
    assert catalogue.check_sha256("AB" * 32, what="test") == "ab" * 32
