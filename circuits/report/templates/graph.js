
// Circuits that answer to the reader: how many edges are drawn, what a node reads and writes, nodes joined into groups, moved.
// Graphs of features are drawn by the same rules, one prompt of several at a time; their nodes have a size, a shape and a column.
{
  const LISTED = 10; // edges of a list beside the graph
  const SVG = "http://www.w3.org/2000/svg";
  const fill = (element, attributes, children) => {
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const signed = (v) =>
    v === null ? "–" : (v < 0 ? "−" : "+") + (Math.abs(v) >= 0.1 || v === 0 ? Math.abs(v).toFixed(2) : String(Number(Math.abs(v).toPrecision(2))));
  const percent = (v) => `${(100 * v).toFixed(1)}%`;

  const circuit = (data) => {
    const nodes = data.nodes.map(([name, label, x, y, score, inclusion, kept], id) => ({ id: `n${id}`, name, label, x, y, score, inclusion, kept }));
    const edges = data.edges.map(([from, reader, score, error, exact, inclusion, connected]) => {
      const [name, part, to] = data.readers[reader];
      return { name: `${nodes[from].name}→${name}`, from: nodes[from], to: to.map((i) => nodes[i]), part, score, error, exact, inclusion, connected };
    });
    return [nodes, edges];
  };
  const features = (data) => {
    const nodes = data.nodes.map(([name, label, x, y, score, influence, activation, shape, radius, box, says], id) =>
      ({ id: `n${id}`, name, label, x, y, score, influence, activation, shape, radius, box, says, half: box ? 8 : radius }));
    const edges = data.links.map(([source, target, score]) => {
      const [from, to] = [nodes[source], nodes[target]];
      return { name: `${from.name} → ${to.name}`, from, to: [to], part: "", score, error: null };
    });
    return [nodes, edges];
  };

  const show = (data) => {
    const flow = Boolean(data.links); // a graph of features
    const [width, height, wide = data.step, tall = data.step] = data.size;
    const half = tall / 2;
    const [nodes, edges] = flow ? features(data) : circuit(data);
    const largest = Math.max(0, ...edges.map((e) => Math.abs(e.score))) || 1;
    const home = new Map(nodes.map((node) => [node, [node.x, node.y]]));
    const groups = new Map(); // of a node, the group that it is in
    const picked = new Set();
    let focus = null;
    let links = [];
    let named = 0;
    const stands = (node) => groups.get(node) ?? node;

    // -- what is where ------------------------------------------------------------------------------------------------
    const first = Math.min(data.drawn, edges.length);
    const steps = new Set([first, edges.length]); // every number at first, then growing ones
    for (let n = 1; n < edges.length; n = Math.max(n + 1, Math.round(n * 1.06))) steps.add(n);
    const counts = [...steps].sort((a, b) => a - b);
    const slider = html("input", { type: "range", min: 0, max: counts.length - 1, step: 1 });
    slider.value = counts.indexOf(first);
    const drawn = () => counts[slider.value];
    const output = html("output");
    const name = html("input", { type: "text", size: 14, maxlength: 40, placeholder: "name" });
    const button = (text) => html("button", { type: "button" }, text);
    const [join, part, reset] = ["Group", "Ungroup", "As at first"].map(button);
    const controls = html(
      "div", { class: "controls" }, html("label", {}, `Largest ${flow ? "links" : "edges"} drawn `, slider), output,
      html("span", { class: "grouping" }, html("label", {}, "Group ", name), join, part), reset,
    );
    const layer = { links: svg("g"), hits: svg("g"), nodes: svg("g") };
    const picture = svg(
      "svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Graph of the circuit: ${data.title}` },
      ...data.layers.map(([text, y]) =>
        svg("g", { class: "level" }, svg("line", { x1: 52, x2: width - 8, y1: y, y2: y }), svg("text", { x: 4, y: y + 3.5 }, text))),
      ...(data.columns ?? []).map(([text, x]) =>
        svg("text", { class: "column", transform: `translate(${x + 3.5} ${data.foot}) rotate(-90)` }, text)),
      layer.links, layer.hits, layer.nodes,
    );
    picture.style.maxWidth = `${width}px`;
    picture.style.minWidth = `${Math.min(width, Math.max(460, (flow ? 0.7 : 0.8) * width))}px`;
    const tip = html("div", { class: "tip", role: "tooltip", hidden: "" });
    const panel = html("div", { class: "beside", "aria-live": "polite", tabindex: 0, role: "region", "aria-label": "Neighbours of the chosen node" });
    const legend = html("p", { class: "caption" });
    const sample = (text, mark) =>
      legend.append(html("span", { class: "entry" }, svg("svg", { class: "mark", viewBox: "-15 -6 30 12", "aria-hidden": "true" }, mark), text));
    sample(`below 0 (${data.unit})`, svg("path", { d: "M-15 0H15", class: "link below" }));
    sample(`above 0 (${data.unit})`, svg("path", { d: "M-15 0H15", class: "link above" }));
    if (flow) {
      sample(`feature, effect below 0 (${data.metric})`, svg("circle", { class: "dot below", r: 4.5 }));
      sample("feature, effect above 0", svg("circle", { class: "dot above", r: 4.5 }));
      sample("token", svg("rect", { class: "dot", x: -4, y: -4, width: 8, height: 8 }));
      sample("error", svg("path", { class: "dot", d: "M0-5L5 0L0 5L-5 0z" }));
    }

    // -- words --------------------------------------------------------------------------------------------------------
    const facts = (e) =>
      flow ? "" : [e.exact === null ? "not patched" : `exact ${signed(e.exact)}`, e.inclusion === null ? "" : `in ${percent(e.inclusion)} of resamplings`, e.connected ? "" : "leads nowhere"]
        .filter(Boolean).join(", ");
    const value = (e) => signed(e.score) + (e.error === null ? "" : ` ± ${signed(e.error).slice(1)}`);
    const tellLink = (link) => {
      if (link.edges.length === 1 && flow) return [link.edges[0].name, link.edges[0].from.says, link.edges[0].to[0].says, `${value(link.edges[0])} ${data.unit}`].filter(Boolean).join("\n");
      if (link.edges.length === 1) return `${link.edges[0].name}\n${value(link.edges[0])} ${data.unit}\n${facts(link.edges[0])}`;
      const most = link.edges.slice(0, 5).map((e) => `${e.name} ${signed(e.score)}`);
      if (link.edges.length > 5) most.push("…");
      return `${link.from.name} → ${link.to.map((n) => n.name).join(", ")}\n${link.edges.length} edges, their sum ${signed(link.score)} ${data.unit}\n${most.join("\n")}`;
    };
    const tellNode = (node) => {
      if (node.members) return `${node.name}: ${node.members.map((n) => n.name).join(", ")}`;
      if (flow) {
        const values = [["effect", node.score, data.metric], ["influence", node.influence, ""], ["activation", node.activation, ""]].filter(([, v]) => v !== null);
        return [node.name, node.says, ...values.map(([word, v, unit]) => `${word} ${word === "effect" ? signed(v) : signed(v).replace("+", "")} ${unit}`.trim())].filter(Boolean).join("\n");
      }
      if (node.score === null) return node.name;
      return `${node.name}\nnode score ${signed(node.score)} ${data.unit}\n${node.kept} edges of the circuit start here` + (node.inclusion === null ? "" : `\nin ${percent(node.inclusion)} of resamplings`);
    };
    const list = (title, found, end) => {
      const rows = found.slice(0, LISTED).map((e) => {
        const other = end === "from" ? e.from : end === "to" ? e.to[0] : null; // of features, the neighbour's name says all
        const item = html("li", { class: e.score < 0 ? "below" : "above" }, html("code", {}, flow && other ? other.name : e.name), ` ${value(e)}`);
        item.append(html("small", {}, flow ? (other?.says ?? "") : facts(e)));
        return item;
      });
      const more = found.length > LISTED ? [html("p", { class: "caption" }, `and ${(found.length - LISTED).toLocaleString("en")} smaller ones`)] : [];
      return [html("h4", {}, `${title} (${found.length.toLocaleString("en")})`), rows.length ? html("ol", {}, ...rows) : html("p", { class: "caption" }, flow ? "none among the nodes drawn" : "none in the circuit"), ...more];
    };
    const tell = () => {
      if (!focus) {
        panel.replaceChildren(
          html("p", { class: "caption" }, "Point at an edge or a node for its values. Click a node (or Enter) for what it reads and writes; drag it to move it. " +
            "Shift-click (or Shift+Enter) several and press Group to see them as one; Escape lets go."),
          ...list(flow ? "Largest links" : "Largest edges", edges.slice(0, LISTED)).slice(1),
        );
        return;
      }
      const inside = (node) => stands(node) === focus;
      const incoming = edges.filter((e) => e.to.some(inside) && !inside(e.from));
      const outgoing = edges.filter((e) => inside(e.from) && !e.to.every(inside));
      const [reads, writes] = flow ? ["Made by: incoming links", "Makes: outgoing links"] : ["Reads: incoming edges", "Writes: outgoing edges"];
      const says = flow && focus.says ? [html("p", { class: "says", dir: "auto" }, focus.says)] : [];
      panel.replaceChildren(html("h3", {}, focus.name), ...says, html("p", { class: "caption" }, focus.members ? focus.members.map((n) => n.name).join(", ") : tellNode(focus).split("\n").slice(1 + says.length).join(", ")),
        ...list(reads, incoming, "from"), ...list(writes, outgoing, "to"));
      panel.scrollTop = 0;
    };
    const point = (text, at) => {
      tip.hidden = !text;
      if (!text) return;
      tip.textContent = text;
      const box = scene.getBoundingClientRect();
      tip.style.left = `${Math.max(0, Math.min(at.x - box.left + 14, box.width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${Math.max(0, at.y - box.top + 14 + tip.offsetHeight > box.height ? at.y - box.top - tip.offsetHeight - 8 : at.y - box.top + 14)}px`;
    };

    // -- drawing ------------------------------------------------------------------------------------------------------
    const curve = (link) => {
      const up = Math.max(...link.to.map((n) => n.y)) < link.from.y;
      const fork = link.to.length > 1;
      const tine = data.tine ?? 0;
      const room = (node) => node.half ?? half;
      const [x0, y0] = [link.from.x, link.from.y + (up ? -room(link.from) : room(link.from))];
      const x1 = link.to.reduce((sum, n) => sum + n.x, 0) / link.to.length;
      const foot = (n) => n.y + (up ? room(n) : -room(n));
      const y1 = up ? Math.max(...link.to.map(foot)) + (fork ? tine : 0) : Math.min(...link.to.map(foot)) - (fork ? tine : 0);
      const [dx, dy] = [x1 - x0, y1 - y0];
      const far = Math.hypot(dx, dy) || 1;
      let bend = (flow ? 0.08 : 0.1) * far * (dx >= 0 ? 1 : -1);
      if (flow) bend = Math.abs(dx) < data.step / 2 && Math.abs(dy) > 2.5 * data.step ? data.step : bend;
      else if (Math.abs(dx) < wide && Math.abs(dy) > 2.5 * data.row) bend = (wide + 14 + Math.min(0.1 * far, 34)) * (Math.round(Math.abs(dy) / (2 * data.row)) % 2 ? 1 : -1);
      bend += data.shift?.[link.part] ?? 0;
      const n = (v) => v.toFixed(1);
      const trunk = `M${n(x0)} ${n(y0)}Q${n((x0 + x1) / 2 + (bend * dy) / far)} ${n((y0 + y1) / 2 - (bend * dx) / far)} ${n(x1)} ${n(y1)}`;
      return trunk + (fork ? link.to.map((end) => `M${n(x1)} ${n(y1)}L${n(end.x)} ${n(foot(end))}`).join("") : "");
    };
    const place = () => {
      for (const link of links) for (const path of link.paths) path.setAttribute("d", curve(link));
      for (const element of layer.nodes.children) element.setAttribute("transform", `translate(${element.node.x.toFixed(1)} ${element.node.y.toFixed(1)})`);
    };
    const mark = () => {
      const near = new Set(focus ? [focus] : []);
      for (const link of links) {
        const mine = focus && (link.from === focus || link.to.includes(focus));
        if (mine) [link.from, ...link.to].forEach((node) => near.add(node));
        link.paths[0].classList.toggle("dim", Boolean(focus) && !mine);
      }
      for (const element of layer.nodes.children) {
        element.classList.toggle("dim", Boolean(focus) && !near.has(element.node));
        element.classList.toggle("focus", element.node === focus);
        element.classList.toggle("picked", picked.has(element.node));
        element.setAttribute("aria-pressed", String(element.node === focus || picked.has(element.node)));
      }
      const whole = [...picked, focus].some((node) => node?.members);
      join.disabled = picked.size < 2;
      part.disabled = !whole;
      join.textContent = picked.size ? `Group ${picked.size}` : "Group";
    };
    const collect = () => {
      const found = new Map();
      edges.slice(0, drawn()).forEach((e, i) => {
        const from = stands(e.from);
        const to = [...new Set(e.to.map(stands))].filter((node) => node !== from);
        if (!to.length) return; // inside a group
        const together = from.members || to.some((node) => node.members);
        const key = together ? [from, ...to].map((node) => node.id).join() : i;
        const link = found.get(key) ?? { from, to, part: together ? "" : e.part, edges: [], score: 0 };
        link.edges.push(e);
        link.score += e.score;
        found.set(key, link);
      });
      return [...found.values()].sort((a, b) => Math.abs(a.score) - Math.abs(b.score));
    };
    const draw = () => {
      const held = picture.contains(document.activeElement) ? document.activeElement.node?.id : null;
      links = collect();
      const most = Math.max(largest, ...links.map((link) => Math.abs(link.score)));
      const [thin, thick] = data.widths;
      for (const link of links) {
        const line = svg("path", { class: `link ${link.score < 0 ? "below" : "above"}` });
        line.style.strokeWidth = (thin + ((thick - thin) * Math.abs(link.score)) / most).toFixed(2);
        const hit = svg("path", { class: "hit" });
        hit.addEventListener("pointermove", (event) => { point(tellLink(link), event); line.classList.add("lit"); });
        hit.addEventListener("pointerleave", () => { point(""); line.classList.remove("lit"); });
        link.paths = [line, hit];
      }
      layer.links.replaceChildren(...links.map((link) => link.paths[0]));
      layer.hits.replaceChildren(...links.map((link) => link.paths[1]));
      const seen = new Set(links.flatMap((link) => [link.from, ...link.to]));
      for (const group of groups.values()) seen.add(group);
      const linked = new Set(seen);
      if (flow) nodes.forEach((node) => seen.add(stands(node))); // features stay in sight without a link
      for (const node of picked) if (!seen.has(node)) picked.delete(node);
      if (focus && !seen.has(focus)) focus = null;
      layer.nodes.replaceChildren(...[...seen].sort((a, b) => b.y - a.y || a.x - b.x).map(knot));
      for (const element of layer.nodes.children) element.classList.toggle("idle", !linked.has(element.node) && !element.node.box);
      const least = edges.length ? Math.abs(edges[drawn() - 1].score) : 0;
      output.textContent = `${(edges.length ? drawn() : 0).toLocaleString("en")} of ${data.total.toLocaleString("en")}, ${flow ? `|${data.unit}| ≥ ${signed(least).slice(1)}` : `|score| ≥ ${signed(least).slice(1)} ${data.unit}`}`;
      slider.setAttribute("aria-valuetext", output.textContent);
      place();
      mark();
      tell();
      if (held) [...layer.nodes.children].find((element) => element.node.id === held)?.focus();
    };
    const shape = (node) => {
      const r = node.radius;
      if (node.shape === "o") return svg("circle", { r });
      if (node.shape === "s") return svg("rect", { x: -r, y: -r, width: 2 * r, height: 2 * r });
      return svg("path", { d: `M0${-1.2 * r}L${1.2 * r} 0L0 ${1.2 * r}L${-1.2 * r} 0z` });
    };
    const knot = (node) => {
      const round = flow && !node.members && !node.box;
      const w = node.members ? Math.max(wide, 7 * node.name.length + 14) : node.box || wide;
      const h = node.members ? tall + 6 : node.box ? 16 : tall;
      const side = flow && !node.members ? (node.score > 0 ? " dot above" : node.score < 0 ? " dot below" : " dot") : "";
      const inside = round ? [shape(node)] : [svg("rect", { x: -w / 2, y: -h / 2, width: w, height: h, rx: 4 }), svg("text", { y: 3.5 }, node.label)];
      const element = svg(
        "g", { class: (node.members ? "node whole" : "node") + side, tabindex: 0, role: "button", "aria-label": tellNode(node).replaceAll("\n", ", ") },
        ...inside,
      );
      element.node = node;
      element.addEventListener("pointerdown", (event) => event.button || drag(node, event));
      element.addEventListener("pointermove", (event) => event.buttons || point(tellNode(node), event));
      element.addEventListener("pointerleave", () => point(""));
      element.addEventListener("focus", () => {
        const box = element.getBoundingClientRect();
        if (element.matches(":focus-visible")) point(tellNode(node), { x: box.right, y: box.bottom });
      });
      element.addEventListener("blur", () => point(""));
      element.addEventListener("click", (event) => press(node, event.shiftKey));
      element.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        press(node, event.shiftKey);
      });
      return element;
    };

    // -- what a reader does -------------------------------------------------------------------------------------------
    let dragged = false;
    const drag = (node, start) => {
      const [x, y, scale] = [node.x, node.y, picture.getScreenCTM().a];
      const move = (event) => {
        const [dx, dy] = [event.clientX - start.clientX, event.clientY - start.clientY];
        dragged ||= Math.hypot(dx, dy) > 4;
        if (!dragged) return;
        point("");
        node.x = Math.min(Math.max(x + dx / scale, wide / 2), width - wide / 2);
        node.y = Math.min(Math.max(y + dy / scale, half), height - half);
        place();
      };
      const end = () => {
        removeEventListener("pointermove", move);
        for (const kind of ["pointerup", "pointercancel"]) removeEventListener(kind, end);
      };
      addEventListener("pointermove", move);
      for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, end);
    };
    const press = (node, more) => {
      if (more) picked.has(node) ? picked.delete(node) : picked.add(node);
      else focus = focus === node ? null : node;
      mark();
      tell();
    };
    const release = (group) => {
      for (const node of group.members) groups.delete(node);
      picked.delete(group);
      if (focus === group) focus = null;
    };
    join.addEventListener("click", () => {
      const members = [...picked].flatMap((node) => node.members ?? [node]);
      [...picked].filter((node) => node.members).forEach(release);
      const mean = (key) => members.reduce((sum, node) => sum + node[key], 0) / members.length;
      named += 1;
      const called = name.value.trim() || `group ${named}`;
      const group = { id: `g${named}`, name: called, label: called, x: mean("x"), y: mean("y"), members };
      for (const node of members) groups.set(node, group);
      picked.clear();
      name.value = "";
      focus = group;
      draw();
    });
    part.addEventListener("click", () => {
      [...picked, focus].filter((node) => node?.members).forEach(release);
      draw();
    });
    reset.addEventListener("click", () => {
      groups.clear();
      picked.clear();
      focus = null;
      for (const [node, [x, y]] of home) Object.assign(node, { x, y });
      slider.value = counts.indexOf(first);
      draw();
    });
    slider.addEventListener("input", draw);
    name.addEventListener("keydown", (event) => event.key === "Enter" && !join.disabled && join.click());
    const frame = html("div", { class: "scroll" }, picture);
    frame.addEventListener("scroll", () => { // the names of layers stay in sight
      const moved = (frame.scrollLeft * width) / picture.clientWidth;
      for (const text of picture.querySelectorAll(".level text")) text.setAttribute("transform", `translate(${moved.toFixed(1)} 0)`);
    });
    const scene = html("div", { class: "scene" }, frame, tip);
    const whole = html("div", { class: "live" }, controls, legend, html("div", { class: flow && width > 900 ? "pair wide" : "pair" }, scene, panel));
    whole.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      focus = null;
      picked.clear();
      point("");
      mark();
      tell();
    });
    picture.addEventListener("pointerdown", () => (dragged = false), true);
    picture.addEventListener("click", (event) => dragged && event.stopImmediatePropagation(), true); // a drag ends with a click
    picture.addEventListener("click", (event) => {
      if (event.target !== picture || !focus) return;
      focus = null;
      mark();
      tell();
    });
    draw();
    return whole;
  };

  // -- a figure's place, and the choice between prompts -----------------------------------------------------------------
  const several = ({ graphs, ...rest }) => {
    const each = graphs.map((graph) => ({ ...rest, ...graph }));
    const choice = html("select", {}, ...each.map((graph, i) => html("option", { value: i }, `${graph.sample}: ${graph.text}`.slice(0, 90))));
    const text = html("p", { class: "caption prompt", dir: "auto" });
    const place = html("div", {});
    const pick = () => {
      const graph = each[choice.value];
      const left = graph.left ? `, ${graph.left.toLocaleString("en")} kept ones of less influence not drawn` : "";
      text.textContent = `“${graph.text}” (${graph.nodes.length.toLocaleString("en")} nodes${left})`;
      place.replaceChildren(show(graph));
      const view = place.querySelector(".scroll");
      view.scrollLeft = view.scrollWidth; // where the answers are
    };
    choice.addEventListener("change", pick);
    const picker = html("div", { class: "live" }, html("div", { class: "controls" }, html("label", {}, "Prompt ", choice)), text);
    return [html("div", {}, picker, place), pick];
  };
  for (const holder of document.querySelectorAll('figure > script[type="application/json"]')) {
    const data = JSON.parse(holder.textContent);
    const still = holder.parentElement.querySelector(".scroll");
    const [whole, pick] = data.graphs ? several(data) : [show(data)];
    still.replaceWith(whole);
    pick?.();
  }
}
