{{/* Envoy's configuration for a sidecar, with the backends of the values. */}}
{{- define "router.envoyConfig" -}}
{{- if .Values.envoy.config }}
{{- .Values.envoy.config }}
{{- else }}
{{- $pools := list }}
{{- range (include "router.pools" . | fromJson).pools }}{{ $pools = append $pools .name }}{{ end }}
{{- if ne (join "," $pools) "short,long" }}
{{- fail "gateway.type: sidecar has routes for the pools short and long only; for others set envoy.config (extproc routes --for envoy)" }}
{{- end }}
{{- $text := .Files.Get (.Values.envoy.accessLog | ternary "files/envoy-access-log.yaml" "files/envoy.yaml") }}
{{- $workers := include "router.workers" . | int }}
{{- if gt $workers 1 }}
{{- $line := "        - endpoint: {address: {pipe: {path: /run/extproc/extproc.sock}}}\n" }}
{{- $lines := "" }}
{{- range until $workers }}
{{- $lines = print $lines (replace "extproc.sock" (printf "extproc.sock.%d" .) $line) }}
{{- end }}
{{- $text = replace $line $lines $text }}
{{- end }}
{{- range $pools }}
{{- $backend := include "router.backend" (dict "root" $ "pool" .) | fromJson }}
{{- $text = replace (printf "address: vllm-%s, port_value: 8000}" .) (printf "address: %s, port_value: %v}" $backend.service $backend.port) $text }}
{{- end }}
{{- $text }}
{{- end }}
{{- end }}

{{/* The ext_proc filter, early header removal and buffer limit as EnvoyFilter patches. */}}
{{- define "router.envoyFilterPatches" -}}
- applyTo: HTTP_FILTER
  match:
    context: GATEWAY
    listener:
      filterChain:
        filter:
          name: envoy.filters.network.http_connection_manager
          {{- if eq .Values.gateway.type "istio" }}
          subFilter: {name: envoy.filters.http.router}
          {{- end }}
  patch:
    # The Inference Extension's picker is an ext_proc filter too, and has to see the route
    # that this one chooses.
    operation: {{ eq .Values.gateway.type "istio" | ternary "INSERT_BEFORE" "INSERT_FIRST" }}
    value:
      name: token-budget-router
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
        grpc_service:
          envoy_grpc:
            cluster_name: outbound|9002||{{ include "router.host" . }}
          timeout: 0s
        processing_mode:
          request_header_mode: SEND
          request_body_mode: NONE
          request_trailer_mode: SKIP
          response_header_mode: SKIP
          response_body_mode: NONE
          response_trailer_mode: SKIP
        allow_mode_override: true
        message_timeout: {{ .Values.gateway.messageTimeout }}
        failure_mode_allow: true
        disable_immediate_response: true
        mutation_rules:
          disallow_all: true
          allow_expression: {regex: "x-llm-.*|content-length"}
        forward_rules:
          allowed_headers:
            patterns:
            - exact: ":path"
            - exact: ":method"
            - exact: content-type
            - exact: content-length
            - exact: content-encoding
            - exact: x-request-id
            - exact: traceparent
            - exact: tracestate
            - exact: x-llm-category
            - exact: ":status"
            - exact: transfer-encoding
            - exact: x-envoy-attempt-count
        metadata_options:
          receiving_namespaces: {untyped: [extproc.token_budget]}
- applyTo: NETWORK_FILTER
  match:
    context: GATEWAY
    listener:
      filterChain:
        filter: {name: envoy.filters.network.http_connection_manager}
  patch:
    operation: MERGE
    value:
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stream_idle_timeout: 1800s
        early_header_mutation_extensions:
        - name: envoy.http.early_header_mutation.header_mutation
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
            mutations:
            - remove: x-llm-pool
            - remove: x-llm-budget
- applyTo: LISTENER
  match:
    context: GATEWAY
  patch:
    operation: MERGE
    value:
      per_connection_buffer_limit_bytes: {{ int .Values.gateway.bufferLimitBytes }}
{{- end }}

{{/* An HTTPRoute's rules: one for each pool, the last without a header to match. */}}
{{- define "router.rules" -}}
{{- $largest := dict }}
{{- range (include "router.pools" . | fromJson).pools }}{{ $_ := set $largest .name .largest }}{{ end }}
{{- range (include "router.routes" . | fromJson).routes }}
{{- $backend := include "router.backend" (dict "root" $ "pool" .pool) | fromJson }}
- matches:
  - path: {type: PathPrefix, value: {{ $.Values.gateway.pathPrefix }}}
    {{- with .headers }}
    headers:
    {{- range $header, $value := . }}
    - {name: {{ $header }}, value: {{ $value | quote }}}
    {{- end }}
    {{- end }}
  backendRefs:
  {{- if and (eq $.Values.gateway.type "envoy-gateway") $.Values.gateway.retryOverflow (ne .pool (get $largest .pool)) }}
  {{- $lastBackend := include "router.backend" (dict "root" $ "pool" (get $largest .pool)) | fromJson }}
  - {group: gateway.envoyproxy.io, kind: Backend, name: {{ $backend.service }}}
  - {group: gateway.envoyproxy.io, kind: Backend, name: {{ $lastBackend.service }}-fallback}
  {{- else if eq $.Values.gateway.type "inference-extension" }}
  - {group: inference.networking.k8s.io, kind: InferencePool, name: {{ $backend.service }}}
  {{- else }}
  - {name: {{ $backend.service }}, port: {{ $backend.port }}}
  {{- end }}
  {{- if ne $.Values.gateway.type "gke" }}
  timeouts: {request: 0s}
  {{- end }}
{{- end }}
{{- end }}

{{- define "router.httpRoute" -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "router.metadata" (dict "root" $ "name" "llm") | nindent 2 }}
spec:
  parentRefs:
  - name: {{ .Values.gateway.name }}
    {{- with .Values.gateway.parentNamespace }}
    namespace: {{ . }}
    {{- end }}
  {{- with .Values.gateway.hosts }}
  hostnames: {{ toJson . }}
  {{- end }}
  rules:
  {{- include "router.rules" . | nindent 2 }}
{{- end }}

{{- define "router.destinationRule" -}}
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  {{- include "router.metadata" (dict "root" $) | nindent 2 }}
spec:
  host: {{ include "router.host" . }}
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    connectionPool:
      tcp: {connectTimeout: 250ms}
      http: {http1MaxPendingRequests: 8192, http2MaxRequests: 8192}
    outlierDetection:
      consecutive5xxErrors: 5
      interval: 2s
      baseEjectionTime: 10s
      maxEjectionPercent: 100
{{- end }}
