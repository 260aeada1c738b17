{{/* The proxy's configuration: what the user gave, over what follows from the other values. */}}
{{- define "stream-aligner.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if not .Values.rollOnConfigChange -}}
{{- $_ := set $config "server" (merge (dict) $config.server (dict "watch_seconds" 10)) -}}
{{- end -}}
{{- if ne .Values.aligner.mode "none" -}}
{{- $host := ternary "127.0.0.1" (printf "%s-aligner" (include "stream-aligner.fullname" .)) (eq .Values.aligner.mode "sidecar") -}}
{{- $url := printf "http://%s:%d/v1" $host (int .Values.aligner.port) -}}
{{- $own := dict "backend" "remote" "path" .Values.aligner.model "urls" (list $url) "model" .Values.aligner.servedModelName -}}
{{- $_ := set $config "aligner" (mergeOverwrite $own ($config.aligner | default dict)) -}}
{{- end -}}
{{- if include "stream-aligner.keysSecretName" . -}}
{{- $file := dict "keys_file" (printf "/etc/stream-aligner-keys/%s" .Values.keysFile.key) -}}
{{- $_ := set $config "access" (merge (dict) ($config.access | default dict) $file) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What is settled when the process starts, beside the environment: a reload leaves it as it is. */}}
{{- define "stream-aligner.fixed" -}}
{{- pick .Values.config.server "host" "port" "workers" "response_store_bytes" "log_format" "log_content" "max_header_bytes" "max_headers" "head_seconds" "body_seconds" "keep_alive_seconds" "tls" "trusted_proxies" | toJson -}}
{{- end -}}

{{/* What ends a reply at the latest, in seconds after SIGTERM. */}}
{{- define "stream-aligner.stopSeconds" -}}
{{- $server := .Values.config.server -}}
{{- addf (dig "drain_seconds" 0 $server) (dig "shutdown_seconds" 30 $server) | ceil | int -}}
{{- end -}}

{{/* How long a rollout may take before it counts as failed: 600 s are Kubernetes' default, and a model
may take longer to load. */}}
{{- define "stream-aligner.progressSeconds" -}}
{{- ternary 600 (max 600 (add .Values.aligner.startupSeconds 300)) (eq .Values.aligner.mode "none") -}}
{{- end -}}

{{- define "stream-aligner.grace" -}}
{{- .Values.terminationGracePeriodSeconds | default (add (include "stream-aligner.stopSeconds" . | int) 15) -}}
{{- end -}}

{{/* What no schema can say. Each line names the value and the remedy. */}}
{{- define "stream-aligner.checks" -}}
{{- $stop := include "stream-aligner.stopSeconds" . | int -}}
{{- $grace := .Values.terminationGracePeriodSeconds | int -}}
{{- if not .Values.config.upstreams -}}
{{- fail "config.upstreams: give at least one, such as {name: main, base_url: http://vllm:8000/v1, dialect: vllm}" -}}
{{- end -}}
{{- if and (eq .Values.aligner.mode "none") (not .Values.config.aligner) -}}
{{- fail "config.aligner: say who reviews, such as {backend: rules, path: rules.yaml} with files.rules\\.yaml; or set aligner.mode to sidecar or deployment" -}}
{{- end -}}
{{- if and $grace (le $grace $stop) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is not more than config.server.drain_seconds + shutdown_seconds (%d); 0 lets the chart choose" $grace $stop) -}}
{{- end -}}
{{- if has .Values.config.server.host (list "127.0.0.1" "localhost" "::1") -}}
{{- fail (printf "config.server.host: nobody outside the pod reaches %s; use 0.0.0.0 or ::" .Values.config.server.host) -}}
{{- end -}}
{{- if (.Values.config.server.tls | default dict).client_ca -}}
{{- fail "config.server.tls.client_ca: the kubelet's probes show no certificate, so no pod would ever be ready; let what stands in front check clients' certificates" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: say at least one, such as {host: llm.example.com}" -}}
{{- end -}}
{{- range $name, $scaler := .Values.autoscaling -}}
{{- if and $scaler.enabled (gt (int $scaler.minReplicas) (int $scaler.maxReplicas)) -}}
{{- fail (printf "autoscaling.%s.minReplicas: %d is more than maxReplicas (%d)" $name (int $scaler.minReplicas) (int $scaler.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.autoscaling.keda -}}
{{- if and .enabled (not .minReplicas) (not .query) (not .triggers) -}}
{{- fail "autoscaling.keda.minReplicas: without a pod there is no open reply that would start one; use 1 or more, or give a query or triggers of your own" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.aligner.mode "deployment") (ge (int .Values.aligner.preStopSeconds) (int .Values.aligner.terminationGracePeriodSeconds)) -}}
{{- fail (printf "aligner.preStopSeconds: %d is not less than aligner.terminationGracePeriodSeconds (%d)" (int .Values.aligner.preStopSeconds) (int .Values.aligner.terminationGracePeriodSeconds)) -}}
{{- end -}}
{{- if and .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled -}}
{{- fail "autoscaling: hpa.enabled and keda.enabled exclude each other; KEDA makes an HPA of its own" -}}
{{- end -}}
{{- if and .Values.autoscaling.keda.enabled (not .Values.autoscaling.keda.prometheusAddress) -}}
{{- fail "autoscaling.keda.prometheusAddress: KEDA must know whom to ask, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- $secrets := compact (list .Values.secrets.existingSecret (ternary "values" "" (not (empty .Values.secrets.values))) (ternary "externalSecret" "" .Values.secrets.externalSecret.enabled)) -}}
{{- if gt (len $secrets) 1 -}}
{{- fail "secrets: existingSecret, values and externalSecret exclude each other; give one" -}}
{{- end -}}
{{- $external := or .Values.secrets.externalSecret.enabled .Values.keysFile.remoteRef -}}
{{- if and $external (not .Values.secrets.externalSecret.secretStoreRef.name) -}}
{{- fail "secrets.externalSecret.secretStoreRef.name: say which store has the keys" -}}
{{- end -}}
{{- if and .Values.secrets.externalSecret.enabled (not (or .Values.secrets.externalSecret.data .Values.secrets.externalSecret.dataFrom)) -}}
{{- fail "secrets.externalSecret.data: say what to take from the store (data or dataFrom)" -}}
{{- end -}}
{{- $keys := compact (list .Values.keysFile.existingSecret .Values.keysFile.content (ternary "remoteRef" "" (not (empty .Values.keysFile.remoteRef)))) -}}
{{- if gt (len $keys) 1 -}}
{{- fail "keysFile: existingSecret, content and remoteRef exclude each other; give one" -}}
{{- end -}}
{{- if hasKey .Values.files "config.yaml" -}}
{{- fail "files.config\\.yaml: this is the configuration's own name; its content goes under config" -}}
{{- end -}}
{{- if and .Values.models.download.image (not (or .Values.models.download.command .Values.models.download.args)) -}}
{{- fail "models.download.command: say what the init container runs" -}}
{{- end -}}
{{- if and (ne .Values.aligner.mode "none") (hasPrefix (printf "%s/" (trimSuffix "/" .Values.models.mountPath)) .Values.aligner.model) (not (include "stream-aligner.hasModels" .)) -}}
{{- fail (printf "aligner.model: %s is in the volume of models, which is not there; set models.existingClaim or models.download" .Values.aligner.model) -}}
{{- end -}}
{{- end -}}
