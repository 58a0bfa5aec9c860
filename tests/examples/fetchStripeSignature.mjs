// What `@stripe/ui-extension-sdk/utils` asks of the Dashboard, done here: Stripe signs the extras in their order, the ids last.
import { createHmac } from "node:crypto";

const { SECRET, USER_ID, ACCOUNT_ID } = process.env;

export async function fetchStripeSignature(extras = {}) {
  const seconds = Math.floor(Date.now() / 1000);
  const payload = JSON.stringify({ ...extras, user_id: USER_ID, account_id: ACCOUNT_ID });
  return `t=${seconds},v1=${createHmac("sha256", SECRET).update(`${seconds}.${payload}`).digest("hex")}`;
}
