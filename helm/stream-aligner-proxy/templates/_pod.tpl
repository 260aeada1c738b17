{{/* Parts of both kinds of pod. */}}
{{/* Of a strategy: the default's rollingUpdate is merged into what was given, and Recreate may not have one. */}}
{{- define "stream-aligner.strategy" -}}
{{- toYaml (ternary (omit . "rollingUpdate") . (eq .type "Recreate")) -}}
{{- end -}}

{{- define "stream-aligner.hasModels" -}}
{{- if or .Values.models.existingClaim .Values.models.download.image -}}yes{{- end -}}
{{- end -}}

{{- define "stream-aligner.modelsVolume" -}}
{{- if include "stream-aligner.hasModels" . }}
- name: models
  {{- if .Values.models.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.models.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.models.sizeLimit }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The operator's download. Of a dict with root and args. */}}
{{- define "stream-aligner.download" -}}
{{- $root := .root -}}
{{- with $root.Values.models.download }}
{{- if .image }}
- name: download-models
  image: {{ .image }}
  {{- with .command }}
  command: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.args }}
  args: {{- toYaml . | nindent 4 }}
  {{- end }}
  env:
    - {name: HOME, value: /tmp}
    {{- with .env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .envFrom }}
  envFrom: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext: {{- toYaml $root.Values.securityContext | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: {{ $root.Values.models.mountPath }}}
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- end }}
{{- end -}}

{{/* vLLM with the aligner. */}}
{{- define "stream-aligner.alignerContainer" -}}
{{- $aligner := .Values.aligner -}}
name: aligner
image: {{ include "stream-aligner.image" (dict "image" $aligner.image "tag" "latest") }}
imagePullPolicy: {{ $aligner.image.pullPolicy }}
command: [vllm, serve]
args:
  - {{ $aligner.model | quote }}
  - --host=0.0.0.0
  - --port={{ $aligner.port }}
  - --served-model-name={{ $aligner.servedModelName }}
  {{- with $aligner.args }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  # The root is read-only, and the user has no entry in /etc/passwd.
  - {name: HOME, value: /cache}
  - {name: USER, value: vllm}
  - {name: XDG_CACHE_HOME, value: /cache}
  - {name: VLLM_CACHE_ROOT, value: /cache/vllm}
  - {name: TRITON_CACHE_DIR, value: /cache/triton}
  - {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/inductor}
  - {name: VLLM_NO_USAGE_STATS, value: "1"}
  {{- if include "stream-aligner.hasModels" . }}
  - {name: HF_HUB_OFFLINE, value: "1"}
  {{- end }}
  {{- with $aligner.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $aligner.envFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - {name: aligner, containerPort: {{ $aligner.port }}, protocol: TCP}
startupProbe:
  httpGet: {path: /health, port: aligner}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ max 1 (div $aligner.startupSeconds 5) }}
livenessProbe:
  httpGet: {path: /health, port: aligner}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /health, port: aligner}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
resources: {{- toYaml $aligner.resources | nindent 2 }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  {{- if include "stream-aligner.hasModels" . }}
  - {name: models, mountPath: {{ .Values.models.mountPath }}, readOnly: true}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
  - {name: aligner-cache, mountPath: /cache}
  - {name: aligner-shm, mountPath: /dev/shm}
  {{- with $aligner.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "stream-aligner.alignerVolumes" -}}
- name: aligner-cache
  emptyDir: {}
# What the engine's processes tell each other passes through it; the default is 64 MiB.
- name: aligner-shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.aligner.sharedMemory }}
{{- with .Values.aligner.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of a dict with constraints and the labels of the pods that are meant. */}}
{{- define "stream-aligner.spread" -}}
{{- $labels := .labels -}}
{{- range .constraints }}
- {{ toYaml (ternary . (merge (dict "labelSelector" (dict "matchLabels" $labels)) .) (hasKey . "labelSelector")) | nindent 2 | trim }}
{{- end }}
{{- end -}}
