"""Prompts to ids, answers to text."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Vocabulary
from tokenizers import decoders, models, pre_tokenizers, processors

from twinpod.errors import InputError
from twinpod.records.arrays import TokenIds
from twinpod.records.rollout import Prompt
from twinpod.reward.exact import Exact
from twinpod.reward.prefix import Prefix
from twinpod.sampling.items import Dataset, Item, Parts
from twinpod.sampling.tokens import NO_TEXT, Tokenizer, build_prompts, divide


def folder(path, characters="abc=", eos="<eos>", **files: object):
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", *characters])}
    vocabulary = Vocabulary(models.BPE(vocab=words, merges=[]))
    vocabulary.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    vocabulary.decoder = decoders.Fuse()
    vocabulary.add_special_tokens(["<pad>", "<eos>"])
    vocabulary.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def dataset(*prompts: str) -> Dataset:
    items = tuple(Item(prompt=prompt, answer="a", where=f"train.jsonl:{n}") for n, prompt in enumerate(prompts, 1))
    return Dataset(name="d", items=items, duplicates=0, held_out=1, size=None, seed=0)


def test_text_comes_back_and_ends_at_the_first_stop(tmp_path):
    tokenizer = Tokenizer(folder(tmp_path))
    assert tuple(tokenizer.encode("cab=")) == (4, 2, 3, 5)
    assert [tuple(ids) for ids in tokenizer.encode_many(["a", "bc"])] == [(2,), (3, 4)]
    assert [tokenizer.decode(TokenIds(ids)) for ids in ((4, 2), (4, 1, 2), (1,), (), ())] == ["ca", "c", "", "", ""]
    assert (tokenizer.eos_id, tokenizer.stop_ids, tokenizer.size) == (1, (1,), 6)


def test_a_special_token_within_an_answer_is_seen_so_that_it_costs_reward(tmp_path):
    assert Tokenizer(folder(tmp_path)).decode(TokenIds((4, 0, 2, 1))) == "c<pad>a"


def test_every_id_that_ends_an_answer_is_a_stop_the_tokenizers_own_first(tmp_path):
    path = folder(
        tmp_path, eos={"content": "<eos>"}, generation_config={"eos_token_id": [0, 1]}, config={"eos_token_id": 5}
    )
    assert Tokenizer(path).stop_ids == (1, 0, 5)


def test_prompts_get_the_template_and_ids_that_nothing_appended_later_shifts(tmp_path):
    prompts = build_prompts(dataset("ab", "ba", "cc"), "{prompt}=", Tokenizer(folder(tmp_path)), special=True)
    training, held_out = divide(prompts, Parts(training=(0, 2), held_out=(1,)))
    assert [(p.prompt_id, p.text, tuple(p.tokens)) for p in (*training, *held_out)] == [
        (0, "ab=", (2, 3, 5)),
        (1, "cc=", (4, 4, 5)),
        (-1, "ba=", (3, 2, 5)),
    ]


@pytest.mark.parametrize("characters", ["abc=", "0ab="])
@pytest.mark.parametrize(
    ("template", "special", "tokens"),
    [
        ("{prompt}", True, (6, 3)),
        ("<bos>{prompt}", True, (6, 3)),
        ("{prompt}", False, (3,)),
        ("<bos>{prompt}", False, (6, 3)),
    ],
)
def test_a_beginning_that_the_post_processor_adds_comes_once_and_its_end_never(
    tmp_path, characters, template, special, tokens
):
    path = folder(tmp_path, characters)
    vocabulary = Vocabulary.from_file(str(path / "tokenizer.json"))
    vocabulary.add_special_tokens(["<bos>"])
    around = [("<bos>", 6), ("<eos>", 1)]
    vocabulary.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=around)
    vocabulary.save(str(path / "tokenizer.json"))
    tokenizer = Tokenizer(path)
    assert tokenizer.opening == TokenIds([6])
    word = characters[1]
    prompts = build_prompts(dataset(word, word), template, tokenizer, special=special)
    assert [tuple(prompt.tokens) for prompt in prompts] == [tokens, tokens]


def test_an_id_without_text_makes_an_answer_wrong(tmp_path):
    tokenizer = Tokenizer(folder(tmp_path))
    assert [tokenizer.decode(TokenIds(ids)) for ids in ((4, 6, 2), (6,), (4, 2, 10**6, 1), (4, 1, 9))] == [
        f"c{NO_TEXT}a",
        NO_TEXT,
        f"ca{NO_TEXT}",
        "c",
    ]
    prompt = Prompt(prompt_id=0, text="ac=", answer="ca", difficulty=0.0, tokens=TokenIds((2, 4, 5)))
    for reward in (Exact(), Prefix()):
        assert reward.score(prompt, tokenizer.decode(TokenIds((4, 2, 1)))).correct
        for ids in ((4, 2, 6, 1), (6, 4, 2, 1), (4, 6, 2, 1)):
            assert not reward.score(prompt, tokenizer.decode(TokenIds(ids))).correct


def test_a_character_that_the_tokenizer_lacks_is_named_with_its_place(tmp_path):
    with pytest.raises(
        InputError, match=r"train.jsonl:2: prompt 1, line 2, column 3: the tokenizer has no 'z'; add .*'z'"
    ):
        build_prompts(dataset("ab", "a\nbbz", "cc"), "{prompt}", Tokenizer(folder(tmp_path, "abc\n")), special=True)


def test_a_newline_is_a_character_too(tmp_path):
    with pytest.raises(InputError, match=r"line 1, column 2: the tokenizer has no '\\n'"):
        build_prompts(dataset("a\nb", "cc"), "{prompt}", Tokenizer(folder(tmp_path, "abc")), special=True)


def test_a_missing_or_broken_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer.json: cannot be read: No such file.*model.tokenizer"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: is no tokenizer"):
        Tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer_config.json: names no token that ends an answer"):
        Tokenizer(folder(tmp_path, eos=None))
