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
{{- if and (ne .Values.aligner.mode "none") (hasPrefix .Values.models.mountPath .Values.aligner.model) (not (include "stream-aligner.hasModels" .)) -}}
{{- fail (printf "aligner.model: %s is in the volume of models, which is not there; set models.existingClaim or models.download" .Values.aligner.model) -}}
{{- end -}}
{{- end -}}
