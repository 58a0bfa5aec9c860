"""Verifies deliveries as a service does: reads a JSON list of body (base64), header, secret, prints for each the id of the
event, or the kind of the error."""
import base64
import json
import sys

import stripe


def outcome(delivery):
    try:
        body = base64.b64decode(delivery["body"])
        return stripe.Webhook.construct_event(body, delivery["header"], delivery["secret"]).id
    except stripe.SignatureVerificationError as error:
        return type(error).__name__


print(json.dumps([outcome(delivery) for delivery in json.load(sys.stdin)]))
