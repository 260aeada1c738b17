{{/* Names, labels and images. */}}
{{- define "stream-aligner.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for "-aligner" and "-dashboards". */}}
{{- define "stream-aligner.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "stream-aligner.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "stream-aligner.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "stream-aligner.selector" -}}
app.kubernetes.io/name: {{ include "stream-aligner.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "stream-aligner.labels" -}}
{{ include "stream-aligner.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Of a dict with image and the tag that is meant where none is given. */}}
{{- define "stream-aligner.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .tag) -}}
{{- end -}}
{{- end -}}

{{- define "stream-aligner.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "stream-aligner.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The Secret whose entries are the gateway's environment; empty where there is none. */}}
{{- define "stream-aligner.secretName" -}}
{{- if .Values.secrets.existingSecret -}}
{{- .Values.secrets.existingSecret -}}
{{- else if or .Values.secrets.values .Values.secrets.externalSecret.enabled -}}
{{- include "stream-aligner.fullname" . -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the file of clients' keys; empty where there is none. */}}
{{- define "stream-aligner.keysSecretName" -}}
{{- if .Values.keysFile.existingSecret -}}
{{- .Values.keysFile.existingSecret -}}
{{- else if or .Values.keysFile.content .Values.keysFile.remoteRef -}}
{{- printf "%s-keys" (include "stream-aligner.fullname" .) -}}
{{- end -}}
{{- end -}}
