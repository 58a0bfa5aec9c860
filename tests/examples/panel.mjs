// Calls the gateway by the panel's own code, as the panel does, and prints what it got as JSON.
import { explain, get, post } from "./gateway.js";

const { USER_ID, ACCOUNT_ID } = process.env;
const user = { id: USER_ID, account: { id: ACCOUNT_ID }, roles: [{ id: "admin", name: "Administrator", type: "builtIn" }] };
const outcome = async (asked) => {
  try {
    return await asked;
  } catch (error) {
    return { explained: explain(error) };
  }
};
console.log(
  JSON.stringify({
    read: await outcome(get(user, "in_123")),
    written: await outcome(post(user, "in_123/note", { note: "it's 1 < 2 – sent" })),
    stranger: await outcome(get({ ...user, id: "usr_Other" }, "in_123")),
  }),
);
