// Verifies deliveries as a service does: reads a JSON list of { body (base64), header, secret }, prints for each the id of
// the event, or the kind of the error.
import { readFileSync } from "node:fs";
import Stripe from "stripe";

const stripe = new Stripe("sk_test_unused");
const outcomes = JSON.parse(readFileSync(0, "utf8")).map(({ body, header, secret }) => {
  try {
    return stripe.webhooks.constructEvent(Buffer.from(body, "base64"), header, secret).id;
  } catch (error) {
    return error.type;
  }
});
console.log(JSON.stringify(outcomes));
