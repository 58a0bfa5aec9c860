// Prints vectors for webhooks, signed by stripe-node, with what stripe-node itself makes of each: node vectors.mjs
import Stripe from "stripe";

const stripe = new Stripe("sk_test_unused");
const NOW = 1790000000;
const SECRET = "whsec_node_0123456789abcdef0123456789abcdef";
const NEXT = "whsec_node_next_0123456789abcdef01234567";
const snapshot = JSON.stringify({
  id: "evt_1Node", object: "event", account: "acct_1Node", api_version: "2026-01-28", created: NOW - 3, livemode: true,
  type: "invoice.paid", data: { object: { id: "in_1Node", object: "invoice", customer_name: "Zoë — 北京 🧾", total: 1.0e3 } },
}, null, 2);
const thin = JSON.stringify({
  id: "evt_test_65Node", object: "v2.core.event", type: "v1.billing.meter.error_report_triggered", livemode: true,
  created: "2026-09-21T13:33:20.000Z", related_object: { id: "mtr_1", type: "billing.meter", url: "/v1/billing/meters/mtr_1" },
});

const tag = (payload, secret, timestamp, scheme = "v1") =>
  stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp, scheme }).split(",")[1];

function vector(name, expect, { body = snapshot, signed = body, secret = SECRET, at = NOW, secrets = [SECRET], header } = {}) {
  header ??= stripe.webhooks.generateTestHeaderString({ payload: signed, secret, timestamp: at });
  const verdicts = secrets.map((each) => {
    try {
      return stripe.webhooks.signature.verifyHeader(body, header, each, 300, undefined, NOW * 1000) && "ok";
    } catch (error) {
      return error.type;
    }
  });
  const library = verdicts.includes("ok") ? "ok" : verdicts[0];
  return { name: `node: ${name}`, now: NOW, secrets, header, body, expect, library };
}

console.log(JSON.stringify([
  vector("valid", "accepted"),
  vector("valid, thin", "accepted", { body: thin }),
  vector("tampered body", "signature_mismatch", { body: snapshot.replace("in_1Node", "in_2Node"), signed: snapshot }),
  vector("printed anew", "signature_mismatch", { body: JSON.stringify(JSON.parse(snapshot)), signed: snapshot }),
  vector("another secret", "signature_mismatch", { secret: NEXT }),
  vector("just in time", "accepted", { at: NOW - 300 }),
  vector("stale", "timestamp_expired", { at: NOW - 301 }),
  vector("a little early", "accepted", { at: NOW + 300 }),
  vector("future", "timestamp_future", { at: NOW + 301 }),
  vector("rolled, old and new tag", "accepted", {
    secrets: [NEXT, SECRET],
    header: `t=${NOW},${tag(snapshot, SECRET, NOW)},${tag(snapshot, NEXT, NOW)}`,
  }),
  vector("rolled, new tag only", "accepted", { secrets: [SECRET, NEXT], secret: NEXT }),
  vector("rolled, old secret gone", "signature_mismatch", { secrets: [NEXT] }),
  vector("v0 only", "signature_malformed", { header: `t=${NOW},${tag(snapshot, SECRET, NOW, "v0")}` }),
  vector("v0 beside v1", "accepted", { header: `t=${NOW},${tag(snapshot, SECRET, NOW)},v0=${"0".repeat(64)}` }),
  vector("the right tag as v0, a wrong v1", "signature_mismatch", {
    header: `t=${NOW},${tag(snapshot, SECRET, NOW, "v0")},v1=${"0".repeat(64)}`,
  }),
  vector("another time than signed", "signature_mismatch", { header: `t=${NOW - 1},${tag(snapshot, SECRET, NOW)}` }),
], null, 1));
