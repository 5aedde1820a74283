{{/* For each model: a rule for each smaller pool, then one without the router's header. */}}
{{- define "router.aiGatewayRoute" -}}
{{- if not .Values.config.models }}
{{- fail "config.models: missing; gateway.type ai-gateway routes by model; expected a model with its pools" }}
{{- end }}
{{- if or .Values.gateway.rewritePrefix (ne .Values.gateway.pathPrefix "/v1") }}
{{- fail "gateway.pathPrefix, gateway.rewritePrefix: gateway.type ai-gateway has its own paths; expected their defaults" }}
{{- end }}
{{- $rules := len (include "router.pools" . | fromJson).pools }}
{{- if gt $rules 15 }}
{{- fail (printf "config.models: %d pools; expected at most 15, the most rules of an AIGatewayRoute" $rules) }}
{{- end }}
apiVersion: aigateway.envoyproxy.io/v1beta1
kind: AIGatewayRoute
metadata:
  {{- include "router.metadata" (dict "root" $) | nindent 2 }}
spec:
  {{- include "router.parents" . | nindent 2 }}
  rules:
  {{- range $model, $settings := .Values.config.models }}
  {{- $largest := (last $settings.pools).name }}
  {{- range $settings.pools }}
  {{- $small := ne .name $largest }}
  - name: {{ .name | quote }}
    matches:
    {{- $pool := .name }}
    {{- range prepend ($settings.adapters | default list) $model }}
    - headers:
      {{- if contains "*" . }}
      - {type: RegularExpression, name: x-ai-eg-model, value: {{ regexQuoteMeta . | replace "\\*" ".*" | quote }}}
      {{- else }}
      - {type: Exact, name: x-ai-eg-model, value: {{ . | quote }}}
      {{- end }}
      {{- if $small }}
      - {type: Exact, name: x-llm-pool, value: {{ $pool | quote }}}
      {{- end }}
    {{- end }}
    backendRefs:
    - {name: {{ printf "%s-%s" (include "router.name" $) .name | quote }}, priority: 0, weight: 1}
    {{- if and $small $.Values.gateway.retryOverflow }}
    - {name: {{ printf "%s-%s" (include "router.name" $) $largest | quote }}, priority: 1, weight: 1}
    {{- end }}
    timeouts: {request: 0s}
    modelsOwnedBy: Envoy AI Gateway
  {{- end }}
  {{- end }}
{{- range (include "router.pools" . | fromJson).pools }}
{{- $name := printf "%s-%s" (include "router.name" $) .name }}
---
apiVersion: aigateway.envoyproxy.io/v1beta1
kind: AIServiceBackend
metadata:
  {{- include "router.metadata" (dict "root" $ "name" $name) | nindent 2 }}
spec:
  schema: {name: OpenAI}
  backendRef: {group: gateway.envoyproxy.io, kind: Backend, name: {{ $name | quote }}}
{{- end }}
{{- end }}
