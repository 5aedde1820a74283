// Command istio_files applies Istio's own code to files of Kubernetes objects, without a
// cluster.
//
//	istio_files validate FILE...       print what Istio's admission webhook would refuse or warn of
//	istio_files serve ADDRESS FILE...  translate the objects, and serve them to Envoys by xDS
//
// Istio's features are set by the same environment variables as those of istiod.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvr"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/kclient/clienttest"
	"istio.io/istio/pkg/test"
)

const usage = "usage: istio_files validate FILE... | serve ADDRESS FILE..."

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "istio_files:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) > 1 && arguments[0] == "validate" {
		return validate(arguments[1:])
	}
	if len(arguments) > 2 && arguments[0] == "serve" {
		return serve(arguments[1], arguments[2:])
	}
	return errors.New(usage)
}

// validate returns what Istio's admission webhook would refuse or warn of, as one error.
func validate(files []string) error {
	documents, err := read(files)
	if err != nil {
		return err
	}
	var complaints []error
	for _, document := range documents {
		// Parsing validates objects of Istio and the Gateway API, and ignores all others.
		found, _, err := crd.ParseInputs(document)
		if err != nil {
			complaints = append(complaints, fmt.Errorf("%w, in\n%s", err, document))
		}
		for _, each := range found { // valid, but perhaps with a field that Istio does not know
			schema, _ := collections.PilotGatewayAPI().FindByGroupVersionAliasesKind(each.GroupVersionKind)
			if warning, _ := schema.ValidateConfig(each); warning != nil {
				complaints = append(complaints, fmt.Errorf("%s %s: %w", each.GroupVersionKind.Kind, each.Name, warning))
			}
		}
	}
	return errors.Join(complaints...)
}

// serve answers Envoys at an address until the process gets a signal to end.
func serve(address string, files []string) error {
	documents, err := read(files)
	if err != nil {
		return err
	}
	configs, objects, err := parse(documents)
	if err != nil {
		return err
	}
	settings := mesh.DefaultMeshConfig()
	// With it, clusters wait for certificates of a sidecar's agent, which is not here.
	settings.EnableAutoMtls.Value = false
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return test.Wrap(func(t test.Failer) {
		server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
			Configs:           configs,
			KubernetesObjects: objects,
			MeshConfig:        settings,
			ListenerBuilder:   func() (net.Listener, error) { return net.Listen("tcp", address) },
			KubeClientModifier: func(client kube.Client) {
				clienttest.MakeCRD(t, client, gvr.InferencePool)
			},
		})
		fmt.Println("serving", server.Listener.Addr())
		<-ended.Done()
	})
}

// read returns the documents of YAML files.
func read(files []string) ([]string, error) {
	var documents []string
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			documents = append(documents, string(document))
		}
	}
	return documents, nil
}

// parse returns the objects of Istio's own kinds, which go to its store, and all others,
// which go to its Kubernetes client.
func parse(documents []string) ([]config.Config, []runtime.Object, error) {
	var configs []config.Config
	var objects []runtime.Object
	decode := kube.IstioCodec.UniversalDeserializer().Decode
	for _, document := range documents {
		found, others, err := crd.ParseInputs(document)
		if err != nil {
			return nil, nil, fmt.Errorf("%w, in\n%s", err, document)
		}
		if len(found) == 1 && own(found[0]) {
			configs = append(configs, found[0])
			continue
		}
		if len(found)+len(others) == 0 {
			continue // a document without an object
		}
		object, _, err := decode([]byte(document), nil, nil)
		if err != nil {
			return nil, nil, fmt.Errorf("%w, in\n%s", err, document)
		}
		objects = append(objects, object)
	}
	return configs, objects, nil
}

// own reports whether an object's kind is of Istio itself, not of the Gateway API.
func own(found config.Config) bool {
	_, ok := collections.Pilot.FindByGroupVersionKind(found.GroupVersionKind)
	return ok && strings.HasSuffix(found.GroupVersionKind.Group, ".istio.io")
}
