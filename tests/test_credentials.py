"""What is hidden of URLs, messages and keyword arguments, and what is not."""

import json

import pytest

from shapray.credentials import HIDDEN, is_hidden, recordable, without_credentials


def test_credentials_do_not_survive():
    job = {
        "output": "s3://AKIA123:sEcReT@bucket/run?token=tOkEn&region=eu",
        "data": {"path": "simplecache::https://host/x.parquet?sig=tOkEn", "kwargs": {"n": 3}},
        "model": {"kwargs": {"api_key": "sEcReT", "weights": "IMAGENET1K_V2", "classes": [1, 2]}},
        "local": "runs/a@b/c?d=e",
    }
    clean = without_credentials(job)
    text = json.dumps(clean)
    assert "sEcReT" not in text
    assert "tOkEn" not in text
    assert "AKIA" not in text
    assert clean["local"] == "runs/a@b/c?d=e"
    assert clean["data"]["kwargs"] == {"n": 3}
    assert clean["model"]["kwargs"] == {
        "api_key": "***",
        "weights": "IMAGENET1K_V2",
        "classes": [1, 2],
    }
    assert "bucket/run" in clean["output"]


def test_credentials_in_messages_do_not_survive():
    said = [
        "cannot read s3://AKIA123:sEc/ReT@bucket/x",
        "made({'aws_secret_access_key': 'sEcReT', 'n': 3}) failed",
        "connect(token=sEcReT, region='eu')",
        "get https://host/x?X-Amz-Signature=sEcReT&n=3",
        "password: sEcReT",
    ]
    for message in said:
        clean = without_credentials(message)
        assert "sEc" not in clean, clean
        assert "***" in clean
        assert "ReT" not in clean, clean
    for plain in (
        "http://host:8080/a@b",
        "s3://bucket/run-1",
        "the tokens are 3",
        "key: 3",
        "NoCredentialsError: Unable to locate credentials",
    ):
        assert without_credentials(plain) == plain
    storage = {"storage_options": {"aws_access_key_id": "AKIA1", "credentials": {"x": "sEcReT"}}}
    assert without_credentials(storage) == {
        "storage_options": {"aws_access_key_id": "***", "credentials": "***"}
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"pool_key": "max", "n": 3, "scale": 0.5, "bias": True, "norm": None},
        {"tokens_to_token": "performer", "cls_token": "mean", "class_tokens": ["a", "b"]},
        {"block": "nets.token:build", "stages": {"pool_key": ["max", "avg"], "mix_token": "none"}},
        {"keypoints": "coco-2017-person-v1", "tokenizer": "bert-base-uncased-2018"},
        {"token_path": "s3://bucket/tokens/v1/2020", "url": "https://host:8080/a@b"},
        {"key": 3, "secret": 7, "hidden_token": 64},
    ],
)
def test_a_networks_own_arguments_are_recorded_as_they_are(arguments):
    assert recordable(arguments) == arguments
    assert not is_hidden(recordable(arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": "sEcReT"},
        {"aws_access_key_id": "sEcReT"},
        {"awsSecretAccessKey": "sEcReT"},
        {"HF_TOKEN": "sEcReT"},
        {"sessionToken": "sEcReT"},
        {"id-token": "sEcReT"},
        {"key": "sEcReT"},
        {"token": ["sEcReT"]},
        {"db_password": "sEcReT"},
        {"credentials": {"user": "sEcReT"}},
        {"store": {"options": [{"private_key": "sEcReT"}]}},
        {"pool_key": "sEcReT0123456789"},
        {"pool_keys": {"a": ["sEcReT0123456789"]}},
        {"weights": "s3://sEcReT:sEcReT@bucket/x"},
        {"weights": "https://host/x?sig=sEcReT"},
        {"dsn": "host=h password=sEcReT"},
        {"call": "login(token='sEcReT')"},
    ],
)
def test_a_credential_among_the_arguments_is_hidden(arguments):
    found = recordable(arguments)
    assert "sEcReT" not in str(found)
    assert HIDDEN in str(found)
    assert is_hidden(found)


def test_arguments_are_recorded_as_ever_if_no_name_is_ambiguous():
    """Their digest is a part of the fingerprint of runs that were begun long ago."""
    for arguments in (
        {"num_classes": 10, "widths": (8, 16), "act": {"name": "relu", "slope": 0.1}},
        {"url": "s3://u:p/q@bucket/x?a=b&c=d", "dsn": "host=h password='x'", "api_key": "x"},
        {"log": "get https://host/x?X-Amz-Signature=x&n=3", "secrets": ["x"], "password": None},
    ):
        assert recordable(arguments) == without_credentials(arguments)
