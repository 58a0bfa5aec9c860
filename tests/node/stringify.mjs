// Reads texts from standard input, each ended by a NUL, and answers each with one line:
// "refused" where JSON.parse throws, else "exact" or "lossy", a space and JSON.stringify(JSON.parse(text)).
// A text is lossy if a number in it is printed with another value than its digits spell.
import { readFileSync } from "node:fs";

const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

const answers = readFileSync(0).toString("utf8").split("\0").slice(0, -1).map(answer);
process.stdout.write(answers.map((line) => `${line}\n`).join(""));

function answer(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return "refused";
  }
  const numbers = text.match(TOKEN)?.filter((token) => token[0] !== '"') ?? [];
  return `${numbers.some(isLossy) ? "lossy" : "exact"} ${JSON.stringify(value)}`;
}

function isLossy(literal) {
  const printed = JSON.stringify(Number(literal));
  return printed === "null" || exact(printed) !== exact(literal);
}

// The value of a literal as an integer that does not end in zero, and the power of ten it is multiplied by.
function exact(literal) {
  const [mantissa, exponent = "0"] = literal.toLowerCase().split("e");
  const [whole, fraction = ""] = mantissa.split(".");
  let integer = BigInt(whole.replace("-", "") + fraction);
  if (integer === 0n) return "0";
  let power = BigInt(exponent) - BigInt(fraction.length);
  while (integer % 10n === 0n) {
    integer /= 10n;
    power += 1n;
  }
  return `${whole.startsWith("-") ? "-" : ""}${integer}e${power}`;
}
