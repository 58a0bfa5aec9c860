// Drives the page of `countersign dev` and prints, as JSON, what it showed for each button.
import { chromium } from "playwright-core";

const [page_url, executablePath] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
try {
  // A person accepts the self-signed certificate once; the test does so for the whole browser.
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  const page = await context.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(page_url);
  const frame = page.frames().find((one) => one !== page.mainFrame());
  const shown = { origin: await frame.evaluate(() => window.origin), sandbox: await page.getAttribute("iframe", "sandbox"), outcomes: {} };
  for (const button of ["get", "post", "admin", "unsigned", "stranger"]) {
    await page.evaluate(() => { for (const id of ["status", "request", "answer", "record"]) document.getElementById(id).textContent = ""; });
    await frame.click("#" + button);
    await page.waitForFunction(() => document.getElementById("status").textContent !== "", undefined, { timeout: 20000 });
    const text = (id) => page.textContent("#" + id);
    shown.outcomes[button] = { status: await text("status"), request: await text("request"), answer: await text("answer"), record: await text("record") };
  }
  shown.problems = problems;
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT, fullPage: true });
  console.log(JSON.stringify(shown));
} finally {
  await browser.close();
}
