{{/* The name of the release's objects, one of which is a Service. */}}
{{- define "router.name" -}}
{{- $release := .Values.nameOverride | default .Release.Name }}
{{- $name := .Values.fullnameOverride | default $release | trunc 53 | trimSuffix "-" }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "release name %s: not the name of a Service; expected fullnameOverride, a letter and then letters, digits and -" $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "router.selector" -}}
app.kubernetes.io/name: {{ include "router.name" . | quote }}
{{- end }}

{{- define "router.labels" -}}
{{ include "router.selector" . }}
app.kubernetes.io/part-of: llm-gateway
{{- end }}

{{/* The labels of an object: dict "root" $ ["labels" LABELS]. */}}
{{- define "router.objectLabels" -}}
{{ include "router.labels" .root }}
{{- with merge dict (.labels | default dict) (.root.Values.commonLabels | default dict) }}
{{ toYaml . }}
{{- end }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{/* Metadata of an object of the release's own name: dict "root" $ ["name" NAME]
["namespace" NAMESPACE] ["labels" LABELS]. */}}
{{- define "router.metadata" -}}
name: {{ .name | default (include "router.name" .root) | quote }}
namespace: {{ .namespace | default .root.Release.Namespace | quote }}
labels:
  {{- include "router.objectLabels" . | nindent 2 }}
{{- end }}

{{/* The number of workers; an error if the gateway calls only one port of a Service. */}}
{{- define "router.workers" -}}
{{- $workers := int .Values.workers }}
{{- if and (gt $workers 1) (not (has .Values.gateway.type (list "none" "ai-gateway" "envoy-gateway" "sidecar"))) }}
{{- fail (printf "workers: %d; gateway.type %s calls one port of a Service; expected 1, with more replicas instead" $workers .Values.gateway.type) }}
{{- end }}
{{- if and (gt $workers 16) (has .Values.gateway.type (list "ai-gateway" "envoy-gateway")) }}
{{- fail (printf "workers: %d; expected at most 16, the most ports of an EnvoyExtensionPolicy" $workers) }}
{{- end }}
{{- $workers }}
{{- end }}

{{/* Not empty if Envoy Gateway sends its access log to the router. */}}
{{- define "router.gatewayAccessLog" -}}
{{- if .Values.gateway.accessLog }}
{{- if ne .Values.gateway.type "envoy-gateway" }}
{{- fail (printf "gateway.accessLog: true; gateway.type %s has no such option; expected false, or envoy.accessLog for sidecar" .Values.gateway.type) }}
{{- end }}
{{- with .Values.gateway.parentNamespace }}
{{- fail (printf "gateway.accessLog: true; gateway.parentNamespace %s; expected a Gateway in the release's namespace, which its EnvoyProxy must share" .) }}
{{- end }}
true
{{- end }}
{{- end }}

{{- define "router.host" -}}
{{ include "router.name" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- define "router.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "router.name" .) }}
{{- end }}

{{- define "router.image" -}}
{{ .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The router's configuration, with the settings that other values turn on. */}}
{{- define "router.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if $config.models }}
{{- $_ := unset $config "pools" }}
{{- end }}
{{- if .Values.state.secret }}
{{- $_ := set $config "state" (merge (dict "store" "redis") ($config.state | default dict)) }}
{{- end }}
{{- if or (include "router.gatewayAccessLog" .) (and .Values.envoy.accessLog (eq .Values.gateway.type "sidecar")) }}
{{- $_ := set $config "feedback" (merge (dict "access_log" true) ($config.feedback | default dict)) }}
{{- end }}
{{- if eq .Values.gateway.type "ai-gateway" }}
{{- $_ := set $config "model" (merge dict ($config.model | default dict) (dict "header" "x-ai-eg-model")) }}
{{- end }}
{{- if .Values.otel.endpoint }}
{{- $_ := set $config "otel" (merge (dict "enabled" true) ($config.otel | default dict)) }}
{{- end }}
{{- if .Values.tls.secret }}
{{- if not (eq .Values.gateway.type "none") }}
{{- fail (printf "tls.secret: %s; gateway.type %s calls the router without TLS; expected no secret or gateway.type none" .Values.tls.secret .Values.gateway.type) }}
{{- end }}
{{- $tls := dict "cert_file" "/etc/extproc-tls/tls.crt" "key_file" "/etc/extproc-tls/tls.key" }}
{{- if .Values.tls.clientCa }}
{{- $_ := set $tls "client_ca_file" "/etc/extproc-tls/ca.crt" }}
{{- end }}
{{- $_ := set $config "server" (merge (dict "tls" $tls) ($config.server | default dict)) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* Checksum of the settings that a running router does not reload. */}}
{{- define "router.restartChecksum" -}}
{{- $config := include "router.config" . | fromYaml }}
{{- pick $config "server" "state" "api" "recording" "otel" | toJson | sha256sum }}
{{- end }}

{{/* The backend of a pool: dict "root" $ "pool" NAME. */}}
{{- define "router.backend" -}}
{{- $backend := get .root.Values.backends .pool | required (printf "backends.%s: missing; expected a backend for each pool of config" .pool) }}
{{- if and (ne .root.Values.gateway.type "sidecar") (not (regexMatch "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$" $backend.service)) }}
{{- fail (printf "backends.%s.service: %s; expected the name of a Service in the release's namespace" .pool $backend.service) }}
{{- end }}
{{- if and (eq .root.Values.gateway.type "inference-extension") .root.Values.gateway.createInferencePools (not $backend.podLabels) }}
{{- fail (printf "backends.%s.podLabels: {}; expected the labels of the pool's pods" .pool) }}
{{- end }}
{{- $backend | toJson }}
{{- end }}

{{/* Every pool, as JSON {"pools": [{"name", "largest"}]}: `largest` is the last pool of the
same model. Gateways' objects and routes have names after their pool. */}}
{{- define "router.pools" -}}
{{- $pools := list }}
{{- $named := not (has .Values.gateway.type (list "none" "sidecar")) }}
{{- if .Values.config.models }}
{{- range .Values.config.models }}
{{- $largest := (last .pools).name }}
{{- range .pools }}{{ include "router.poolName" (dict "name" .name "check" $named) }}{{ $pools = append $pools (dict "name" .name "largest" $largest) }}{{ end }}
{{- end }}
{{- else }}
{{- $largest := (last .Values.config.pools).name }}
{{- range .Values.config.pools }}{{ include "router.poolName" (dict "name" .name "check" $named) }}{{ $pools = append $pools (dict "name" .name "largest" $largest) }}{{ end }}
{{- end }}
{{- dict "pools" $pools | toJson }}
{{- end }}

{{- define "router.poolName" -}}
{{- if and .check (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .name)) }}
{{- fail (printf "config pool %s: the gateway's objects have this name; expected lower-case letters, digits and -" .name) }}
{{- end }}
{{- end }}

{{/* The routes in matching order, as JSON {"routes": [{"name", "pool", "headers"}]}. Without
a decision a request goes to its model's largest pool; if the model is unknown, it goes to
the default model's largest pool, or matches no route. */}}
{{- define "router.routes" -}}
{{- $routes := list }}
{{- range (include "router.pools" . | fromJson).pools }}
{{- if or $.Values.config.models (ne .name .largest) }}
{{- $routes = append $routes (dict "name" .name "pool" .name "headers" (dict "x-llm-pool" .name)) }}
{{- end }}
{{- end }}
{{- if .Values.config.models }}
{{- $given := dig "model" "header" "" .Values.config }}
{{- range $model, $settings := .Values.config.models }}
{{- $largest := (last $settings.pools).name }}
{{- range $header := compact (list "x-llm-model" $given) }}
{{- $name := printf "%s-by-%s" $largest ($header | lower) }}
{{- $routes = append $routes (dict "name" $name "pool" $largest "headers" (dict $header $model)) }}
{{- end }}
{{- end }}
{{- $unknown := .Values.config.unknown_model }}
{{- if kindIs "map" $unknown }}
{{- $default := get .Values.config.models $unknown.default | required (printf "config.unknown_model.default: %s; expected a model of config.models" $unknown.default) }}
{{- $routes = append $routes (dict "name" "default" "pool" (last $default.pools).name "headers" dict) }}
{{- else if not $given }}
{{/* The router is asked only about requests that match a route, and without a header no
request has its model yet. */}}
{{- fail (printf "config.models: without config.model.header and config.unknown_model.default, no request matches a route of gateway.type %s; expected one of them, or gateway.type none with extproc routes --for gateway-api or istio" .Values.gateway.type) }}
{{- end }}
{{- else }}
{{- $largest := (last .Values.config.pools).name }}
{{- $routes = append $routes (dict "name" $largest "pool" $largest "headers" dict) }}
{{- end }}
{{- dict "routes" $routes | toJson }}
{{- end }}
