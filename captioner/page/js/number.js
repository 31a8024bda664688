// Numbers as people read them.

// The probability of a log-probability, such as "83%".
export function percent(logProb) {
  const chance = Math.exp(logProb) * 100;
  if (chance < 0.1) return "<0.1%";
  if (chance < 9.95) return `${chance.toFixed(1)}%`;
  if (chance < 99.5) return `${Math.round(chance)}%`;
  return logProb < 0 && chance < 99.95 ? `${chance.toFixed(1)}%` : "100%";
}

// With a true minus sign, which screen readers read out.
export const decimal = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
