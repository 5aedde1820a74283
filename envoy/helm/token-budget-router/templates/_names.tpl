{{- define "router.name" -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "router.selector" -}}
app.kubernetes.io/name: {{ include "router.name" . }}
{{- end }}

{{- define "router.labels" -}}
{{ include "router.selector" . }}
app.kubernetes.io/part-of: llm-gateway
{{- end }}

{{- define "router.objectLabels" -}}
{{ include "router.labels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Metadata of an object of the release's own name: dict "root" $ ["name" NAME]. */}}
{{- define "router.metadata" -}}
name: {{ .name | default (include "router.name" .root) }}
namespace: {{ .namespace | default .root.Release.Namespace }}
labels:
  {{- include "router.objectLabels" .root | nindent 2 }}
{{- end }}

{{/* The number of workers; an error where the gateway asks one port of a Service. */}}
{{- define "router.workers" -}}
{{- $workers := int .Values.workers }}
{{- if and (gt $workers 1) (not (has .Values.gateway.type (list "none" "envoy-gateway" "sidecar"))) }}
{{- fail (printf "workers: %d: gateway.type %s asks one port of a Service; autoscaling.maxReplicas does it there" $workers .Values.gateway.type) }}
{{- end }}
{{- $workers }}
{{- end }}

{{- define "router.host" -}}
{{ include "router.name" . }}.{{ .Release.Namespace }}.svc.cluster.local
{{- end }}

{{/* The backend of a pool: dict "root" $ "pool" NAME. */}}
{{- define "router.backend" -}}
{{ get .root.Values.backends .pool | required (printf "backends.%s: missing; config.pools has a pool of that name" .pool) | toJson }}
{{- end }}
