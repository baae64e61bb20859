"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const BLANK = 255;

  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const remembered = new Map();
  const decoded = (text) => {
    if (!remembered.has(text)) remembered.set(text, bytesOf(text));
    return remembered.get(text);
  };
  const palettes = { share: bytesOf(data.palettes.share), signed: bytesOf(data.palettes.signed) };
  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  // The last one found at a moment or before it; before the first, that.
  const latest = (rows, moment, at) => {
    let found = null;
    for (const row of rows) if (at(row) <= moment) found = row;
    return found === null && rows.length ? rows[0] : found;
  };

  function drawMap(canvas, bytes, start, height, width, signed) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const palette = palettes[signed ? "signed" : "share"];
    let blank = 0;
    for (let cell = 0; cell < width * height; cell++) {
      const byte = bytes[start + cell];
      if (byte === BLANK) { blank++; continue; }
      const colour = 3 * Math.min(255, Math.round((byte * 255) / 254));
      for (let part = 0; part < 3; part++) picture.data[4 * cell + part] = palette[colour + part];
      picture.data[4 * cell + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
    return blank < width * height;
  }

  // Images and their maps --------------------------------------------------------------------------------------

  const cards = $("cards") ? [...$("cards").children] : [];

  function placeOver(canvas, area) {
    const [height, width] = data.size;
    if (area.length !== 4) return;
    const [top, left, bottom, right] = area;
    canvas.style.inset = "auto";
    canvas.style.top = `${(100 * top) / height}%`;
    canvas.style.left = `${(100 * left) / width}%`;
    canvas.style.height = `${(100 * (bottom - top)) / height}%`;
    canvas.style.width = `${(100 * (right - left)) / width}%`;
  }

  function showImages(moment) {
    if (!cards.length) return;
    const title = $("view").selectedOptions[0].textContent;
    const notes = [];
    const shown = data.runs.map((run) => {
      const view = run.views.find((one) => one.title === title);
      return { view, frame: view && latest(view.frames, moment, (one) => one.moment), said: latest(run.captions, moment, (one) => one[0]) };
    });
    const view = shown.find((one) => one.view)?.view;
    if (view) {
      $("scale").className = `scale ${view.signed ? "signed" : "share"}`;
      const from = view.signed ? `−${data.limit}` : "0";
      $("scale-words").textContent = `${from} to ${data.limit} times an equal share of the map, ${view.method}`;
    }
    shown.forEach((one, number) => {
      const name = data.names.length ? `${data.names[number]}: ` : "";
      if (!one.view) notes.push(`${name}has no such map`);
      else if (one.frame.moment !== moment) notes.push(`${name}maps are of ${data.labels[one.frame.moment]}, none was made at ${data.labels[moment]}`);
    });
    const count = Math.max(0, ...shown.map((one) => (one.view ? one.view.count : 0)));
    if (count < cards.length) notes.push(`there are such maps of the first ${count} images`);
    $("view-note").textContent = notes.join("; ");
    cards.forEach((card, number) => {
      card.hidden = number >= count;
      if (card.hidden) return;
      card.querySelectorAll(".stack").forEach((stack, run) => {
        const { view: own, frame } = shown[run];
        const canvas = stack.querySelector("canvas");
        const there = own && number < own.count;
        canvas.hidden = !there;
        if (!there) { stack.classList.remove("mapped"); return; }
        placeOver(canvas, own.area);
        const size = own.height * own.width;
        const isMap = drawMap(canvas, decoded(frame.maps), number * size, own.height, own.width, own.signed);
        stack.classList.toggle("mapped", isMap && Number($("opacity").value) > 0);
        stack.classList.toggle("small", Math.max(...data.size) <= 96);
        const of = frame.of ? ` for ${frame.of[number]}` : "";
        const run_ = data.names.length ? `, run ${data.names[run]}` : "";
        canvas.setAttribute("aria-label", `Map of image ${number}${of}, ${own.title}, ${data.labels[frame.moment]}${run_}${isMap ? "" : ": all zero, no map"}`);
      });
      const said = card.querySelector(".said");
      said.replaceChildren(...shown.map(({ said: row, frame }, run) => {
        const box = element("div");
        if (data.names.length) box.append(element("p", "which", data.names[run]));
        if (row) row[1][number].lines.forEach((line, at) => {
          const right = at === 0 ? row[1][number].right : null;
          box.append(element("p", right === null ? "" : right ? "right" : "wrong", line));
        });
        if (frame && frame.of && number < frame.of.length) box.append(element("p", "", `map of: ${frame.of[number]}`));
        return box;
      }));
    });
  }

  // Rewritten images -------------------------------------------------------------------------------------------

  const pictures = new Map(); // data addresses to promises of their pixels
  function pixelsOf(address) {
    if (!pictures.has(address)) {
      pictures.set(address, new Promise((resolve, reject) => {
        const image = new Image();
        image.onload = () => {
          const canvas = document.createElement("canvas");
          canvas.width = image.naturalWidth;
          canvas.height = image.naturalHeight;
          const context = canvas.getContext("2d", { willReadFrequently: true });
          context.drawImage(image, 0, 0);
          resolve(context.getImageData(0, 0, canvas.width, canvas.height));
        };
        image.onerror = () => reject(new Error("a picture of this page cannot be read"));
        image.src = address;
      }));
    }
    return pictures.get(address);
  }

  const gain = () => Number($("change").value) / 4;
  let flickering = false; // whether the rewritten image is wanted now, or the original
  let original = false;
  let drawn = []; // of the pairs on the page
  let rows = [];

  function paint(entry) {
    const { canvas, base, levels, pair } = entry;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(base.width, base.height);
    const factor = original ? 0 : gain() * pair.step * 255;
    const alone = $("alone").checked;
    const alike = alone ? 64 : 1; // the change alone is shown 64 times as large
    for (let at = 0; at < picture.data.length; at += 4) {
      for (let part = 0; part < 3; part++) {
        const change = (levels.data[at + part] - 128) * factor;
        picture.data[at + part] = alone ? 128 + alike * change : base.data[at + part] + change;
      }
      picture.data[at + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
    const what = original || gain() === 0 ? "as it is" : `with ${gain()} times the change`;
    canvas.setAttribute("aria-label", `Image ${pair.image}, ${alone ? "the change alone, 64 times as large, " : ""}${what}: ${pair.before} to ${pair.after}`);
  }

  function paintAll() {
    const value = gain();
    const words = value === 0 ? "0 ×, the image" : value === 1 ? "1 ×, the rewritten image" : `${value} × the change`;
    $("change-label").textContent = words;
    drawn.forEach(paint);
  }

  function cardOf(pair, originals) {
    const card = element("li", "pair");
    const canvas = element("canvas", Math.max(pair.height, pair.width) <= 96 ? "pixels" : "");
    canvas.width = pair.width;
    canvas.height = pair.height;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Image ${pair.image}`);
    card.append(canvas);
    if (pair.maps) {
      const { height, width, signed, bytes } = pair.maps;
      const maps = element("div", "maps");
      ["before", "after"].forEach((when, number) => {
        const map = element("canvas");
        map.setAttribute("role", "img");
        map.setAttribute("aria-label", `Map of image ${pair.image} ${when}`);
        drawMap(map, decoded(bytes), number * height * width, height, width, signed);
        const figure = element("figure");
        figure.append(map, element("figcaption", "", `map ${when}`));
        maps.append(figure);
      });
      card.append(maps);
    }
    const says = element("div", "says");
    says.append(element("p", "", `${pair.before} → ${pair.after}`), ...pair.lines.map((line) => element("p", "", line)));
    card.append(says);
    Promise.all([pixelsOf(originals[pair.original]), pixelsOf(pair.difference)]).then(([base, levels]) => {
      const entry = { canvas, base, levels, pair };
      if (!card.isConnected) return;
      drawn.push(entry);
      paint(entry);
    });
    return card;
  }

  function showRewrites(moment) {
    if (!$("rewrite-runs")) return;
    const now = data.runs.map((run) => latest(run.rewrites, moment, (row) => row[0]));
    const notes = now.flatMap((row, number) => {
      const name = data.names.length ? `${data.names[number]}: ` : "";
      return row && row[0] !== moment ? [`${name}rewritten at ${data.labels[row[0]]}, not at ${data.labels[moment]}`] : [];
    });
    $("rewrites-note").textContent = notes.join("; ");
    if (now.every((row, number) => row === rows[number])) return;
    rows = now;
    drawn = [];
    $("rewrite-runs").replaceChildren(...now.flatMap((row, number) => {
      if (!row) return [];
      const list = element("ol", "pairs");
      list.append(...row[1].map((pair) => cardOf(pair, data.runs[number].originals)));
      return data.names.length ? [element("h3", "", data.names[number]), list] : [list];
    }));
  }

  if ($("change")) {
    $("change").addEventListener("input", paintAll);
    $("alone").addEventListener("change", paintAll);
    $("flicker").addEventListener("click", () => {
      flickering = !flickering;
      original = false;
      $("flicker").setAttribute("aria-pressed", String(flickering));
      paintAll();
    });
    // Twice a second: three flashes a second are the most that is safe to look at.
    setInterval(() => {
      if (!flickering) return;
      original = !original;
      drawn.forEach(paint);
    }, 500);
  }

  // The moment of the run --------------------------------------------------------------------------------------

  const marks = [...document.querySelectorAll("line.now")];
  function show() {
    const moment = Number($("moment").value);
    $("moment-label").textContent = data.labels[moment];
    $("moment").setAttribute("aria-valuetext", data.labels[moment]);
    for (const mark of marks) {
      const left = Number(mark.dataset.left), right = Number(mark.dataset.right);
      const x = left + data.positions[moment] * (right - left);
      mark.setAttribute("x1", x);
      mark.setAttribute("x2", x);
    }
    showImages(moment);
    if (document.readyState === "complete") showRewrites(moment);
  }
  // Their pictures are the largest of the page: it is open before they are decoded.
  window.addEventListener("load", () => setTimeout(show));
  $("moment").addEventListener("input", show);
  if (cards.length) {
    $("view").addEventListener("change", show);
    $("opacity").addEventListener("input", () => {
      document.documentElement.style.setProperty("--map", Number($("opacity").value) / 100);
      show();
    });
    $("size").addEventListener("input", () => {
      document.documentElement.style.setProperty("--card", `${$("size").value}px`);
    });
  }
  show();
})();
