// The answers of the API. Written by `python -m tests.dashboard_ui.api_types`: do not edit.

export interface Audit {
  entries: AuditEntry[];
  waiting: number;
}

export interface AuditEntry {
  at: number;
  actor: string;
  request: string;
  refused: string;
  note: string;
  workers: number | null;
  completed: boolean;
}

export interface Bottleneck {
  sentence: string;
  part: 'rollouts' | 'learner' | 'push' | 'tools' | 'queue' | 'balanced' | 'unknown';
  share: number | null;
  of: string;
  fix: string;
}

export interface Call {
  number: number;
  name: string;
  arguments: Text;
  status: string;
  result: Text;
  seconds: number;
  cpu_seconds: number;
  memory_bytes: number | null;
  purpose: string;
}

export interface CallPage {
  rows: CallRow[];
  next: string | null;
  total: number;
}

export interface CallRow {
  uid: number;
  episode: string;
  attempt: number;
  turn: number;
  number: number;
  tool: string;
  status: string;
  phase: string;
  seconds: number;
  cpu_seconds: number;
  arguments: string;
  result: string;
}

export interface Chart {
  id: string;
  title: string;
  unit: string;
  note: string;
  lines: ChartLine[];
}

export interface ChartLine {
  label: string;
  steps: number[];
  values: (number | null)[];
}

export interface Compare {
  sides: CompareSide[];
  shared: number;
  rows: PairedRow[];
  flips: Flip[];
  won: number;
  lost: number;
  tied: number;
  notes: string[];
}

export interface CompareSide {
  run: string;
  name: string;
  tasks: number;
  samples: number;
  score: Estimate;
}

export interface ConfigAnswer {
  attempts: ConfigAttempt[];
  changes: ConfigChange[];
  versions: Record<string, string>;
}

export interface ConfigAttempt {
  label: string;
  first_step: number;
  last_step: number | null;
  toml: string;
}

export interface ConfigChange {
  key: string;
  values: (string | null)[];
}

export interface Coverage {
  episodes: number;
  details: number;
  complete: boolean;
}

export interface Damage {
  where: string;
  what: string;
  fix: string;
  severity: 'note' | 'warning' | 'error';
}

export interface Delta {
  name: string;
  values: (number | null)[];
  change: number | null;
}

export interface Diff {
  rows: EpisodeRow[];
  same_task: boolean;
  turns: DiffTurn[];
  first_divergent_turn: number | null;
  first_divergent_token: DiffToken;
  reward_parts: Delta[];
  calls: Delta[];
  numbers: Delta[];
}

export interface DiffToken {
  position: number | null;
  turns: (number | null)[];
  contexts: string[];
}

export interface DiffTurn {
  number: number;
  same: boolean;
  sides: (Text | null)[];
  phases: (string | null)[];
  first_difference: number | null;
}

export interface EpisodeDetail {
  row: EpisodeRow;
  error: Text;
  question: Text;
  messages_before: Message[];
  turns: Turn[];
  scorer: Scorer;
  tags: Record<string, string>;
  extra: Part[];
  sampling: Part[];
  seed: string;
  worker: string;
  tool_server: string;
  isolation: string;
  consumed_at: string;
  overlays: Overlay[];
  siblings: Neighbour[];
  attempts: number[];
  flag_notes: Record<string, string>;
}

export interface EpisodePage {
  rows: EpisodeRow[];
  next: string | null;
  total: number;
  snapshot: number;
  newer: number;
  coverage: Coverage;
}

export interface EpisodeRow {
  uid: number;
  episode: string;
  attempt: number;
  group: string;
  task: string;
  sample_index: number;
  environment: string;
  split: string;
  mode: string;
  source: string;
  outcome: string;
  reward: number | null;
  oldest_version: number;
  started_at: number;
  wall_s: number;
  tokens: number;
  state: 'leased' | 'stored' | 'finished' | 'trained' | 'dropped' | 'retried';
  reason: string;
  step: number | null;
  staleness: number | null;
  advantage: number | null;
  trial_advantage: number | null;
  turns: number | null;
  trial_calls: number | null;
  execution_calls: number | null;
  tool_errors: number | null;
  infra_errors: number | null;
  sampled_tokens: number | null;
  generate_s: number | null;
  tool_s: number | null;
  queue_s: number | null;
  worker: string | null;
  answer: string | null;
  question: string | null;
  error: string | null;
  flags: string[] | null;
}

export interface Estimate {
  value: number | null;
  stderr: number | null;
  low: number | null;
  high: number | null;
  clusters: number;
}

export interface EvalTableRow {
  by: string;
  value: string;
  tasks: number;
  samples: number;
  lost: number;
  pass_at_k: Record<string, Estimate>;
  majority: Estimate | null;
  trial_calls: Estimate;
  tool_error_rate: Estimate;
  malformed_rate: Estimate;
  tokens: Estimate;
  filter: string;
}

export interface Evaluation {
  run: string;
  complete: boolean;
  rows: EvalTableRow[];
  outcomes: Record<string, number>;
  failures: Record<string, number>;
  notes: string[];
}

export interface Facet {
  field: string;
  title: string;
  values: FacetValue[];
  others: number;
  quote: boolean;
}

export interface FacetValue {
  value: string;
  count: number;
}

export interface Facets {
  facets: Facet[];
  total: number;
  coverage: Coverage;
}

export interface FailureRow {
  what: string;
  reason: string;
  episodes: number;
  error: string;
  example: string;
  filter: string;
}

export interface Failures {
  rows: FailureRow[];
  total: number;
}

export interface FieldHelp {
  name: string;
  type: 'number' | 'text' | 'flag';
  example: string;
  meaning: string;
  sortable: boolean;
  details: boolean;
}

export interface FilterCheck {
  filter: string;
  needs_details: boolean;
  total: number;
}

export interface FilterLanguage {
  fields: FieldHelp[];
  operators: string[];
  examples: string[];
}

export interface Fleet {
  start: number;
  end: number;
  bucket_s: number;
  workers: string[];
  cells: FleetCell[];
  pushes: PushMark[];
  alive: number | null;
  losses: number | null;
  note: string;
}

export interface FleetCell {
  worker: string;
  bucket: number;
  episodes: number;
  running: number;
  generate: number;
  tool: number;
  queue: number;
  version: number | null;
  lag: number | null;
}

export interface Flip {
  task: string;
  question: string;
  first_score: number;
  second_score: number;
  first_episode: string;
  second_episode: string;
  verdict: 'won' | 'lost';
}

export interface Group {
  group: string;
  task: string;
  question: string;
  lanes: Lane[];
  open: OpenEpisode[];
  zero_variance: boolean;
  reward_mean: number | null;
  reward_std: number | null;
  baseline_note: string;
}

export interface GroupPage {
  rows: GroupRow[];
  next: string | null;
  total: number;
}

export interface GroupRow {
  group: string;
  task: string;
  episodes: number;
  reward_mean: number | null;
  reward_min: number | null;
  reward_max: number | null;
  zero_variance: boolean;
  trained: number;
  dropped: number;
  step: number | null;
  reason: string;
}

export interface Health {
  problems: Damage[];
  coverage: Coverage;
  index_folder: string;
}

export interface Histogram {
  field: string;
  edges: number[];
  counts: number[];
  missing: number;
}

export interface Lane {
  row: EpisodeRow;
  pieces: LanePiece[];
  reward_parts: Record<string, number | null>;
}

export interface LanePiece {
  turn: number;
  phase: string;
  tokens: number;
  calls: number;
  errors: number;
  policy_error: string;
}

export interface LedgerPage {
  rows: LedgerRow[];
  next: string | null;
  total: number;
}

export interface LedgerRow {
  number: number;
  event: 'dropped' | 're_leased' | 'rolled_back';
  reason: string;
  meaning: string;
  group: string;
  task: string;
  episodes: string[];
  step: number | null;
  at: number | null;
}

export interface LedgerSummary {
  states: Record<string, number>;
  edges: number[];
  reasons: ReasonSeries[];
  retries: number;
  violations: string[];
}

export interface LogLine {
  number: number;
  at: number | null;
  text: string;
  source: string;
  level: 'error' | 'warning' | 'info';
}

export interface LogPage {
  lines: LogLine[];
  more: boolean;
  before: number | null;
}

export interface Message {
  role: string;
  content: Text;
}

export interface MetricsAnswer {
  run: string;
  series: Series[];
}

export interface Neighbour {
  episode: string;
  attempt: number;
  sample_index: number;
  reward: number | null;
  outcome: string;
}

export interface OpenEpisode {
  episode: string;
  attempt: number;
  group: string;
  task: string;
  sample_index: number;
  why: string;
}

export interface OpenEpisodes {
  episodes: OpenEpisode[];
  total: number;
}

export interface OutcomeCount {
  outcome: string;
  count: number;
  share: number;
}

export interface Overlay {
  name: string;
  title: string;
  unit: string;
  available: boolean;
  reason: string;
  tokens: number;
  low: number | null;
  high: number | null;
}

export interface Overview {
  run: RunSummary;
  bottleneck: Bottleneck;
  charts: Chart[];
  outcomes: OutcomeCount[];
  coverage: Coverage;
}

export interface PairedRow {
  by: string;
  value: string;
  first: string;
  second: string;
  tasks: number;
  first_score: number;
  second_score: number;
  difference: number;
  stderr: number | null;
  low: number | null;
  high: number | null;
  p: number;
  p_holm: number;
}

export interface Part {
  name: string;
  value: number | null;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  fix: string;
  code: string;
  instance: string;
  position: number | null;
  length: number | null;
  suggestions: string[];
}

export interface PushMark {
  step: number;
  at: number | null;
  seconds: number | null;
}

export interface ReasonSeries {
  reason: string;
  meaning: string;
  total: number;
  counts: number[];
}

export interface RunList {
  runs: RunSummary[];
  roots: string[];
  studies: string[];
}

export interface RunSummary {
  id: string;
  name: string;
  kind: string;
  state: 'running' | 'finished' | 'stopped' | 'failed start' | 'unreadable';
  paused: boolean;
  path: string;
  created_at: number | null;
  command: string;
  step: number;
  steps: number | null;
  episodes: number | null;
  success: number | null;
  reward: number | null;
  reward_spark: (number | null)[];
  workers: number | null;
  last_error: string;
  updated_at: number | null;
  problems: number;
}

export interface Scorer {
  answer: Text;
  outcome: string;
  reward: number | null;
  parts: Part[];
  correct: boolean | null;
  note: string;
}

export interface SearchHit {
  type: 'hit';
  uid: number;
  episode: string;
  attempt: number;
  group: string;
  outcome: string;
  reward: number | null;
  part: string;
  before: string;
  match: string;
  after: string;
}

export interface SearchProgress {
  type: 'progress' | 'end';
  episodes: number;
  of: number;
  hits: number;
  stopped: string;
}

export interface Series {
  name: string;
  title: string;
  unit: string;
  meaning: string;
  over: string;
  averaging: string;
  steps: number[];
  values: (number | null)[];
}

export interface Session {
  role: 'viewer' | 'operator';
  version: string;
  demo: boolean;
  can_write: boolean;
}

export interface SftSet {
  path: string;
  episodes: number;
  left_out: Record<string, number>;
  command: string;
}

export interface SteerPreview {
  allowed: boolean;
  sentence: string;
  reason: string;
}

export interface SteerResult {
  accepted: boolean;
  refused: string;
  note: string;
  workers: number | null;
}

export interface Study {
  id: string;
  path: string;
  arms: string[];
  settings: string[];
  cells: StudyCell[];
  unfinished: string[];
  notes: string[];
}

export interface StudyCell {
  arm: string;
  setting: string;
  run: string | null;
  runs: string[];
  accuracy: number | null;
  low: number | null;
  high: number | null;
  seeds: number;
  tasks: number;
  trial_calls: number | null;
}

export interface Text {
  text: string;
  length: number;
  part: string;
}

export interface TextPart {
  part: string;
  text: string;
  offset: number;
  length: number;
  next: number | null;
}

export interface TokenColumns {
  token_id: number[];
  phase: number[];
  loss_mask: boolean[];
  version: (number | null)[];
  staleness: (number | null)[];
  logprob: (number | null)[];
  trainer_logprob: (number | null)[];
  mismatch: (number | null)[];
  entropy: (number | null)[];
  advantage: (number | null)[];
  text: string[] | null;
  text_reason: string;
}

export interface ToolFigures {
  by: 'tool' | 'environment';
  rows: ToolRow[];
  coverage: Coverage;
}

export interface ToolRow {
  tool: string;
  environment: string;
  phase: string;
  episodes: number;
  calls: number;
  p50_s: number | null;
  p99_s: number | null;
  errors: number;
  error_rate: number | null;
  timeouts: number;
  timeout_rate: number | null;
  infra: number;
  infra_share: number | null;
  mean_result: number | null;
  filter: string;
}

export interface Turn {
  number: number;
  phase: string;
  start: number;
  end: number;
  text: Text;
  finish_reason: string;
  policy_error: string;
  versions: number[];
  calls: Call[];
  observations: Text[];
}
