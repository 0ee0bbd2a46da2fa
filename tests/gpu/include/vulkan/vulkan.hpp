// Vulkan headers older than 1.3.262, such as those of Debian 12, lack VK_EXT_layer_settings, whose
// types llama.cpp names (ggml-vulkan.cpp, ggml_vk_instance_init). This header adds them to the
// installed one. They are only used together with Khronos' validation layer.
#pragma once
#include_next <vulkan/vulkan.hpp>

#ifndef VK_EXT_layer_settings
#include <vector>

namespace VULKAN_HPP_NAMESPACE {

enum class LayerSettingTypeEXT : int32_t { eBool32 = 0 };

struct LayerSettingEXT {
    const char * layer_name;
    const char * setting_name;
    LayerSettingTypeEXT type;
    uint32_t n_values;
    const void * values;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & given)
        : n_settings(uint32_t(given.size())), settings(given.data()) {}

    VkStructureType type = VkStructureType(1000496000);
    const void * next = nullptr;
    uint32_t n_settings;
    const LayerSettingEXT * settings;
};

}
#endif
