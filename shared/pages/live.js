// Fetches the page again, every two seconds for as long as the run answers.
"use strict";
const again = async () => {
  try {
    const answer = await fetch("/");
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const [now, next] = [document.querySelector("main"), page.querySelector("main")];
    if (now.innerHTML !== next.innerHTML) now.innerHTML = next.innerHTML;
    document.title = page.title;
  } catch {
    document.querySelector("#gone").hidden = false;
  }
  setTimeout(again, 2000);
};
setTimeout(again, 2000);
