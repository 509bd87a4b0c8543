// Ctrl (or ⌘) with ↑ or ↓ pulls the weight of the selected words, or of the word at the caret,
// in a prompt: red → (red:1.1) → (red:1.2). At 1 the brackets go away again.
(() => {
  const STEP = 0.1, LEAST = 0, MOST = 3;
  const FIELDS = "#prompt textarea, #negative textarea";
  const WEIGHT = /^:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)/; // what follows weighted words

  // The innermost "(words:1.2)" whose words hold start..end; null if there is none.
  function group(text, start, end) {
    const open = [];
    let found = null;
    for (let i = 0; i < text.length; i++) {
      if (text[i] === "\\") i++;
      else if (text[i] === "(") open.push(i);
      else if (text[i] === ")") open.pop();
      else if (text[i] === ":" && open.length) {
        const match = WEIGHT.exec(text.slice(i));
        const from = open[open.length - 1];
        // Inner groups end first, so the first that fits is the innermost.
        if (match && !found && from < start && end <= i) {
          found = { from, to: i + match[0].length, words: text.slice(from + 1, i), weight: +match[1] };
        }
      }
    }
    return found;
  }

  // The word at the caret, or the selection without the space around it.
  function words(text, start, end) {
    if (start === end) {
      while (start > 0 && !/[\s,()[\]:|]/.test(text[start - 1])) start--;
      while (end < text.length && !/[\s,()[\]:|]/.test(text[end])) end++;
    } else {
      while (start < end && /\s/.test(text[start])) start++;
      while (end > start && /\s/.test(text[end - 1])) end--;
    }
    return start === end ? null : { from: start, to: end, words: text.slice(start, end), weight: 1 };
  }

  function pull(field, by) {
    const text = field.value, { selectionStart: start, selectionEnd: end } = field;
    const part = group(text, start, end) ?? words(text, start, end);
    if (!part) return;
    const weight = Math.round(Math.min(MOST, Math.max(LEAST, part.weight + by)) * 100) / 100;
    const plain = weight === 1;
    field.setSelectionRange(part.from, part.to);
    // Typed, so that Ctrl+Z takes it back and Gradio hears of it.
    document.execCommand("insertText", false, plain ? part.words : `(${part.words}:${weight})`);
    const at = part.from + (plain ? 0 : 1);
    field.setSelectionRange(at, at + part.words.length);
  }

  document.addEventListener("keydown", (event) => {
    const by = { ArrowUp: STEP, ArrowDown: -STEP }[event.key];
    const asked = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey;
    if (!by || !asked || !event.target.matches?.(FIELDS)) return;
    event.preventDefault();
    pull(event.target, by);
  });
})();
