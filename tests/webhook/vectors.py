"""Prints vectors for webhooks, signed by stripe-python, with what stripe-python itself makes of each."""

import json
from unittest import mock

import stripe

NOW = 1790000000
SECRET = "whsec_python_0123456789abcdef0123456789ab"
NEXT = "whsec_python_next_0123456789abcdef012345"
SNAPSHOT = json.dumps(
    {
        "id": "evt_1Python", "object": "event", "created": NOW - 3, "livemode": True, "type": "customer.updated",
        "data": {"object": {"id": "cus_1", "object": "customer", "name": "Zoë — 北京 🧾"}, "previous_attributes": {}},
    },
    indent=2,
    ensure_ascii=False,
)
THIN = json.dumps(
    {
        "id": "evt_test_65Python", "object": "v2.core.event", "type": "v2.core.account.created", "livemode": True,
        "context": "acct_1Python", "created": "2026-09-21T13:33:20.000Z", "related_object": None,
    }
)


def tag(payload, secret, at):
    return stripe.WebhookSignature._compute_signature(f"{at}.{payload}", secret)


def vector(name, expect, body=SNAPSHOT, signed=None, secret=SECRET, at=NOW, secrets=(SECRET,), header=None):
    header = header or f"t={at},v1={tag(signed or body, secret, at)}"
    library = "SignatureVerificationError"
    for each in secrets:
        try:
            with mock.patch("time.time", return_value=NOW):
                stripe.WebhookSignature.verify_header(body, header, each, 300)
            library = "ok"
        except stripe.SignatureVerificationError:
            pass
    return {
        "name": f"python: {name}", "now": NOW, "secrets": list(secrets), "header": header, "body": body, "expect": expect,
        "library": library,
    }


print(
    json.dumps(
        [
            vector("valid", "accepted"),
            vector("valid, thin", "accepted", body=THIN),
            vector("tampered body", "signature_mismatch", body=SNAPSHOT.replace("cus_1", "cus_2"), signed=SNAPSHOT),
            vector("one space more", "signature_mismatch", body=SNAPSHOT + " ", signed=SNAPSHOT),
            vector("another secret", "signature_mismatch", secret=NEXT),
            vector("just in time", "accepted", at=NOW - 300),
            vector("stale", "timestamp_expired", at=NOW - 301),
            vector("a little early", "accepted", at=NOW + 300),
            vector("future", "timestamp_future", at=NOW + 301),
            vector(
                "rolled, old and new tag", "accepted", secrets=(NEXT, SECRET),
                header=f"t={NOW},v1={tag(SNAPSHOT, SECRET, NOW)},v1={tag(SNAPSHOT, NEXT, NOW)}",
            ),
            vector("rolled, new tag only", "accepted", secrets=(SECRET, NEXT), secret=NEXT),
            vector("rolled, old secret gone", "signature_mismatch", secrets=(NEXT,)),
            vector("v0 only", "signature_malformed", header=f"t={NOW},v0={tag(SNAPSHOT, SECRET, NOW)}"),
            vector("v0 beside v1", "accepted", header=f"t={NOW},v1={tag(SNAPSHOT, SECRET, NOW)},v0={'0' * 64}"),
            vector(
                "the right tag as v0, a wrong v1", "signature_mismatch",
                header=f"t={NOW},v0={tag(SNAPSHOT, SECRET, NOW)},v1={'0' * 64}",
            ),
        ],
        indent=1,
    )
)
